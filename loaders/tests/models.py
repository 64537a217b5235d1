#!/usr/bin/env python3
"""Small models for the tests of this package, written by the formats' own packages.

usage: models.py gguf FILE          a matrix of each type candle knows; 2 MiB
       models.py gguf-across FILE   and one that lies across the edge of the first chunk; 118 MiB
       models.py onnx FOLDER        y = (x A) A + b, as model.onnx and model.ort

Of each quantised matrix `m` the GGUF has the values too, as gguf reads them: `m.values`, F32.
"""
import sys

import numpy as np

MIB = 1 << 20
ROWS, COLUMNS = 48, 512
SIDE = 1024


def quantised(rng, kind, rows, columns):
    """[rows, bytes of a row] uint8: random blocks of a ggml type, their scales being small numbers."""
    import gguf

    elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, columns // elements, block_bytes), dtype=np.uint8)
    # Where the halves or the float lie that scale a block (ggml-common.h); any other byte may be anything.
    halves = {
        "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
        "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    }
    for at in halves.get(kind.name, []):
        scales = rng.uniform(0.001, 0.01, blocks.shape[:2]).astype("<f2")
        blocks[:, :, at : at + 2] = scales[:, :, None].view(np.uint8)
    if kind.name == "Q8_K":
        blocks[:, :, :4] = rng.uniform(0.001, 0.01, blocks.shape[:2]).astype("<f4")[:, :, None].view(np.uint8)
        sums = blocks[:, :, 4:260].view(np.int8).reshape(*blocks.shape[:2], 16, 16).sum(axis=-1, dtype="<i2")
        blocks[:, :, 260:] = sums.view(np.uint8)
    return blocks.reshape(rows, -1)


def write_gguf(path, across):
    import gguf

    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "test")
    kinds = gguf.GGMLQuantizationType

    values = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    writer.add_tensor("f32", values)
    writer.add_tensor("f16", values.astype(np.float16))
    writer.add_tensor("bf16", gguf.quants.quantize(values, kinds.BF16), raw_dtype=kinds.BF16)
    writer.add_tensor("norm", values[0])
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"]:
        kind = kinds[name]
        data = quantised(rng, kind, ROWS, COLUMNS)
        writer.add_tensor(name.lower(), data, raw_dtype=kind)
        if name != "Q8_K":  # which gguf does not read: files never have it, ggml makes it of activations
            writer.add_tensor(name.lower() + ".values", gguf.quants.dequantize(data, kind))

    if across:
        # Chunks are of 100 MiB: this one fills most of the first, the next goes on into the second.
        writer.add_tensor("filler", np.zeros((95, MIB // 2), dtype=np.float16))
        writer.add_tensor("across", np.tile(quantised(rng, kinds.Q8_0, 1, MIB), (20, 1)), raw_dtype=kinds.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(folder):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    i = np.arange(SIDE)
    a = (((i[:, None] * 31 + i[None, :] * 17) % 64 - 32) / 1024).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["xa"]),
            helper.make_node("MatMul", ["xa", "a"], ["xaa"]),
            helper.make_node("Add", ["xaa", "b"], ["y"]),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIDE])],
        [numpy_helper.from_array(a, "a"), numpy_helper.from_array((i / SIDE).astype(np.float32), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, f"{folder}/model.onnx")
    options = onnxruntime.SessionOptions()
    # Beyond this level the result is made for one machine.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = f"{folder}/model.ort"
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    what, path = sys.argv[1:]
    if what == "onnx":
        write_onnx(path)
    else:
        write_gguf(path, across=what == "gguf-across")
