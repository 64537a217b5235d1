#!/usr/bin/env python3
"""Writes the first inputs of the fuzz targets into fuzz/corpus: `scripts/with sh -c '"$MODEL_CACHE_PYTHON" fuzz/seeds.py'`.

Files of tensors are those of the formats' own writers (gguf, safetensors, onnx) and of the MiniLM model, cut down; the rest is
what a Hub, a shell and a store say. Inputs of `records` come from the store's own encoder: `record_seeds.rs`.
"""

import hashlib
import json
import os
import pathlib
import struct
import sys
import tempfile

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save as safetensors_bytes

CORPUS = pathlib.Path(__file__).parent / "corpus"
COMMIT = "1234567890123456789012345678901234567890"
GIT = "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"
SHA = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447"


def seed(target, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def gguf_files():
    def written(add, version=3):
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            writer = gguf.GGUFWriter(file.name, "llama")
            add(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            data = bytearray(pathlib.Path(file.name).read_bytes())
        struct.pack_into("<I", data, 4, version)
        return bytes(data)

    def all_kinds(writer):
        writer.add_custom_alignment(64)
        writer.add_uint8("a.u8", 1)
        writer.add_int8("a.i8", -1)
        writer.add_uint16("a.u16", 2)
        writer.add_int16("a.i16", -2)
        writer.add_uint32("a.u32", 3)
        writer.add_int32("a.i32", -3)
        writer.add_uint64("a.u64", 4)
        writer.add_int64("a.i64", -4)
        writer.add_float32("a.f32", 0.5)
        writer.add_float64("a.f64", 0.25)
        writer.add_bool("a.bool", True)
        writer.add_string("a.text", "ü")
        writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "bc"])
        writer.add_array("tokenizer.ggml.scores", [0.0, 1.0, 2.0])
        writer.add_array("a.bools", [True, False])
        writer.add_array("a.nested", [[1, 2], [3]])
        writer.add_tensor("token_embd.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
        writer.add_tensor("blk.0.attn_q.weight", np.arange(6, dtype=np.float16).reshape(2, 3))

    def quantised(writer):
        for number, kind in enumerate((gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0)):
            data = gguf.quants.quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64), kind)
            writer.add_tensor(f"blk.{number}.ffn_up.weight", data, raw_dtype=kind)

    def split(writer):
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 0)

    for version in (2, 3):
        for add in (all_kinds, quantised, split):
            seed("gguf", written(add, version))
    seed("gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    seed("gguf", b"version https://git-lfs.github.com/spec/v1\n")


def safetensors_files(minilm):
    arrays = {"a": np.zeros((2, 3), np.float32), "b.weight": np.ones(5, np.float16), "n": np.zeros((0, 4), np.int64), "s": np.array(1, np.uint8)}
    seed("safetensors", safetensors_bytes(arrays))
    seed("safetensors", safetensors_bytes({"x": np.ones(3, np.int16)}, metadata={"format": "pt", "k\n": "ü"}))
    seed("safetensors", safetensors_bytes({}))
    # The first tensors of a real model, their data cut to nothing but what the shapes of two of them need.
    data = (minilm / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = sorted((v["data_offsets"], k, v) for k, v in header.items() if k != "__metadata__" and len(v["shape"]) == 1)
    small, at = {}, 0
    for (start, end), name, value in tensors[:6]:
        shape = [4]
        small[name] = {"dtype": value["dtype"], "shape": shape, "data_offsets": [at, at + 16]}
        at += 16
    text = json.dumps({"__metadata__": header.get("__metadata__", {"format": "pt"}), **small}, separators=(",", ":")).encode()
    seed("safetensors", struct.pack("<Q", len(text)) + text + data[8 + length : 8 + length + at])
    every = "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64".split()
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
    header, at = {}, 0
    for name in every:
        size = bits.get(name) or int("".join(c for c in name.split("_")[0] if c.isdigit()) or 8)
        header[name.lower()] = {"dtype": name, "shape": [4], "data_offsets": [at, at + size * 4 // 8], "later": [1, {"x": None}]}
        at += size * 4 // 8
    text = json.dumps(header).encode()
    seed("safetensors", struct.pack("<Q", len(text)) + text + bytes(at))


def onnx_files():
    def tensor(name, elements=4, raw=True, kind=TensorProto.FLOAT):
        if raw:
            return helper.make_tensor(name, kind, [elements], np.zeros(elements, np.float32).tobytes(), raw=True)
        return helper.make_tensor(name, kind, [elements], [1.0] * elements)

    def external(name):
        made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.onnx_data"), ("offset", "4096"), ("length", "16"), ("checksum", "00")):
            made.external_data.add(key=key, value=value)
        return made

    def model(nodes, initializers, functions=()):
        graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])], [], initializers)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], functions=functions)
        return made

    weight, packed = tensor("w", 300), tensor("p", 300, raw=False)
    seed("onnx", model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]).SerializeToString())
    seed("onnx", model([], [packed, external("e"), tensor("s")]).SerializeToString())
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external("c"))], "then", [], [], [external("deep")])
    branch = helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
    seed("onnx", model([branch], [external("e")]).SerializeToString())
    sparse = helper.make_sparse_tensor(tensor("v", 300), helper.make_tensor("i", TensorProto.INT64, [300], list(range(300))), [1000])
    made = model([helper.make_node("Constant", [], ["c"], sparse_value=sparse)], [])
    made.graph.sparse_initializer.append(sparse)
    made.training_info.add().algorithm.initializer.append(external("t"))
    seed("onnx", made.SerializeToString())
    function = helper.make_function("d", "F", ["x"], ["y"], [helper.make_node("Constant", [], ["y"], value=external("f"))], [helper.make_opsetid("", 21)])
    seed("onnx", model([helper.make_node("F", ["x"], ["y"], domain="d")], [], [function]).SerializeToString())
    large = TensorProto(name="l", data_type=TensorProto.INT8, dims=[5, 4096], data_location=TensorProto.EXTERNAL)
    large.external_data.add(key="location", value="d/w.bin")
    nodes = [helper.make_node(op, ["l", "x"], ["y"]) for op in ("Transpose", "Gemm", "QLinearConv")]
    seed("onnx", model(nodes, [large]).SerializeToString())


def hub():
    info = {"sha": COMMIT, "pipeline_tag": "text-generation", "library_name": "transformers", "private": False, "gated": "auto", "disabled": False, "siblings": [{"rfilename": "x"}]}
    seed("json", b"\0" + json.dumps(info).encode())
    seed("json", b"\0" + json.dumps({"sha": GIT, "gated": False, "pipeline_tag": None}).encode())
    entries = [
        {"type": "directory", "oid": GIT, "size": 0, "path": "onnx"},
        {"type": "file", "oid": GIT, "size": 12, "path": "config.json"},
        {"type": "file", "oid": GIT, "size": 99, "path": "onnx/m.onnx", "lfs": {"oid": SHA, "size": 99, "pointerSize": 130}, "xetHash": SHA},
    ]
    pages = [json.dumps(entries[:2]).encode(), json.dumps(entries[2:]).encode()]
    seed("json", b"\1" + b"\0".join(pages))
    seed("json", b"\1[]")
    for status, body in ((404, '{"error":"Repository not found"}'), (401, '{"error":"Invalid credentials in Authorization header"}'), (500, "<html>"), (429, '{"message":"x"}')):
        seed("json", b"\3" + struct.pack("<H", status) + body.encode())

    def head(status, text, start=0, length=9, behind=10, host=0):
        seed("headers", struct.pack("<4HB", status, start, length, behind, host) + text.encode())

    promise = f"X-Repo-Commit: {COMMIT}\nX-Linked-Size: 20\nX-Linked-ETag: \"{SHA}\"\nETag: W/\"{GIT}\""
    head(302, promise + "\nLocation: https://cdn.example/a?sig=1")
    head(307, "Location: /api/resolve-cache/models/x#f", host=1)
    head(301, "Location: https://user:pw@hf.co/", host=2)
    head(206, promise + "\nContent-Range: bytes 0-9/20\nContent-Length: 10")
    head(200, f"X-Repo-Commit: {COMMIT}\nContent-Length: 20\nETag: \"{SHA}\"")
    head(416, "Content-Range: bytes */20")
    head(200, "Content-Encoding: gzip\nContent-Range: bytes 5-9/*")
    head(200, 'Link: <https://hub.example:8443/mirror/api/models/o/n/tree/x?cursor=y%3D>; rel="next", <../p>; rel="prev"')
    head(429, 'RateLimit: "api";r=0;t=55, "resolvers";r=3;t=9\nRetry-After: 7')
    head(403, "X-Error-Code: GatedRepo\nX-Error-Message: Access to this resource is disabled.\nX-Request-Id: Root=1")
    for code in ("RepoNotFound", "RevisionNotFound", "EntryNotFound"):
        head(404, f"X-Error-Code: {code}")


def words():
    digest = f"sha256:{SHA}"
    pinned = f"org/name@{COMMIT}"
    for spec, path, other, key in (
        ("org/name", "config.json", "onnx/model.onnx_data", f"meta:{pinned}:a%3Ab%25.onnx"),
        ("Org/na.me-1@refs/pr/1", "a b/c:d%", "../x", f"file:{pinned}:m.gguf:chunk:3"),
        (f"o/n@{COMMIT}", "…/ü", "a/./b", f"{pinned}~9:onnx/a%3Ab"),
        ("o/n@v1.0", "x", "C:x", f"derived:{digest}:00ff"),
        ("o/n", "x/y", "/etc/passwd", "access:7"),
    ):
        seed("names", "\n".join((spec, path, other, key, digest if path != "x" else f"git-sha1:{GIT}")))
    for text in ("10M", "1.5 GiB/s", "24MiB", "1e9", "0.5K", "derive"):
        seed("options", b"\0" + text.encode())
    for text in ("https://huggingface.co", "http://127.0.0.1:8080/hf/", "https://h/?k=v", "//u:p@h", "ftp://h"):
        seed("options", b"\1" + text.encode())
    for glob in ("*.json", "onnx/{model,encoder}_*.onnx", "a[1-3]?.bin", "**/x", "[!a]", "{a,{b,c}}", "\\*"):
        seed("options", b"\2" + f"{glob}\nconfig.json\nonnx/model_q4.onnx\na1.bin".encode())
    seed("options", b"\3fp16\nF16\nQ4_K_M\nUD-Q4_K_XL\ndefault\nonnx/q8")
    for names in (
        "README.md\nM-Q4_K_M.gguf\nM-Q6_K_L-00001-of-00002.gguf\nM-Q6_K_L-00002-of-00003.gguf\nmmproj-M-F16.gguf\nM.imatrix",
        "config.json\t9\nonnx/model.onnx\nonnx/model_q4f16.onnx\nonnx/model_q4f16.onnx_data\nonnx/model_q4f16.onnx_data_2\nonnx/decoder_model_merged.onnx\nonnx/x.onnx.json",
        "model_index.json\nunet/diffusion_pytorch_model.fp16.safetensors\nunet/diffusion_pytorch_model.bin\nvae/model.safetensors.index.json\nvae/model-00001-of-00002.safetensors",
        "original/consolidated.00.pth\noriginal/params.json\tx\ncheckpoint-10/optimizer.pt\ngenai/genai_config.json\ngenai/model.onnx\nopenvino/openvino_model.xml\nA.mlpackage/Data/weights.bin\t40",
        "M.Q6_K.gguf-split-a\nM.Q6_K.gguf-split-b\nM.Q8_0.gguf.part1of2\n.hidden/x.bin\nflax_model.msgpack\ntf_model.h5\nx.tflite\nrust_model.ot\nw.npz\nm.nemo",
    ):
        seed("listing", names)
    for arguments in (
        "pull\0org/name\0--quant\0Q4_K_M\0--file\0*.json\0--limit-rate\x0010M",
        "--json\0ls\0--bogus",
        "cat\0org/name\0x\0--range\x001..5\0-vv",
        "export\0o/n\0--to\0d\0--force\0--store\0/my store\0--endpoint\0http://h",
        "verify\0--digest\0--cached",
        "rm\0o/n\0-y\0-q\0a\0-q\0b",
        "\xff".encode("latin1").decode("latin1"),
    ):
        seed("terminal", b"\0" + arguments.encode("latin1"))
    for size, text in ((10, "1..5"), (10, "..5"), (4, "5.."), (1 << 63, "18446744073709551615..")):
        seed("terminal", b"\1" + struct.pack("<Q", size) + text.encode())
    for text in ("模型模型 \u202eb\x1b[31m, tail", "model-cache rm a/b x && model-cache pull a/b", "could not reach h: a: invalid peer certificate: x: y"):
        seed("terminal", b"\2" + text.encode())
    for pair in ((3, 10), ((1 << 64) - 1, (1 << 64) - 2), (5 << 20, 1 << 40), (0, 0)):
        seed("terminal", b"\3" + struct.pack("<QQ", *pair))

    def region(page, value_bytes, index, owner, data_bytes, block_bytes, journal):
        header = b"MDXEXTNT" + struct.pack("<IIQQI", 1, index, owner, data_bytes, block_bytes)
        entries = b"".join(struct.pack("<I", crc) + (b"LAND" if landed else bytes(4)) for crc, landed in journal)
        seed("extent", struct.pack("<IQ", page, value_bytes) + header.ljust(64, b"\0") + entries)

    region(5, (64 << 10) - 20 + (100 << 20) + (2 << 20) - (64 << 10), 3, 7, 100 << 20, 5 << 20, [(1, True), (0, False)])
    region(0, (64 << 10) - 20 + 1, 0, 1, 1, 1, [(9, True)])
    region(1601, (64 << 10) - 20 + (32 << 20), 0, 1, (2 << 30) - (4 << 20), 5 << 20, [])


def main():
    minilm = pathlib.Path(os.environ["MODEL_CACHE_MINILM"])
    gguf_files()
    safetensors_files(minilm)
    onnx_files()
    hub()
    words()
    return 0


if __name__ == "__main__":
    sys.exit(main())
