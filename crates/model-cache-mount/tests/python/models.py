"""Makes, or loads, two models that only take paths: models.py make|load FOLDER. What was loaded is printed as digests."""

import hashlib
import os
import sys

import numpy as np

TENSORS, SIDE = 28, 1024  # 112 MiB of weights: one lies across a chunk's edge


def make_onnx(folder: str) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    nodes, weights, value = [], [], "x"
    for n in range(TENSORS):
        weight = (random.standard_normal((SIDE, SIDE)) / 32).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{n}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{n}"], [f"v{n}"]))
        value = f"v{n}"
    shape = [None, SIDE]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    os.makedirs(f"{folder}/onnx")
    path = f"{folder}/onnx/model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", convert_attribute=False)
    assert os.path.getsize(f"{folder}/onnx/model.onnx_data") > 100 << 20


def make_gguf(folder: str) -> None:
    import gguf

    random = np.random.default_rng(2)
    writer = gguf.GGUFWriter(f"{folder}/model.gguf", "llama")
    for n in range(3):
        writer.add_tensor(f"blk.{n}.weight", random.standard_normal((2048, 6144)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(folder: str) -> None:
    import gguf
    import onnxruntime

    for prepack in "01":
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_prepacking", prepack)
        path = f"{folder}/onnx/model.onnx"
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        x = np.linspace(-1, 1, 2 * SIDE, dtype=np.float32).reshape(2, SIDE)
        (y,) = session.run(None, {"x": x})
        print("onnx", prepack, hashlib.sha256(y.tobytes()).hexdigest())
    reader = gguf.GGUFReader(f"{folder}/model.gguf")  # maps the file
    for tensor in reader.tensors:
        print("gguf", tensor.name, tensor.shape.tolist(), hashlib.sha256(tensor.data.tobytes()).hexdigest())


def main(what: str, folder: str) -> None:
    if what == "make":
        make_onnx(folder)
        make_gguf(folder)
    else:
        load(folder)


main(*sys.argv[1:])
