#!/usr/bin/env python3
"""Writes a GGUF file of everything, and tells what an independent reader finds in it.

usage: reference.py write PATH    tensors of every type, keys of every type; PyPI package gguf
       reference.py read PATH     JSON, see read()
"""
import hashlib
import json
import struct
import sys

import gguf
import numpy as np

# The package gives Q8_1 40 bytes a block; in ggml it has 36 since 2024. Files have neither: it is a type of sums on the way.
UNLIKE_GGML = {gguf.GGMLQuantizationType.Q8_1}


def write(path):
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "test")
    writer.add_custom_alignment(128)
    for kind, value in {
        "uint8": 2**8 - 1, "int8": -(2**7), "uint16": 2**16 - 1, "int16": -(2**15), "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.1, "float64": 0.1, "bool": True, "string": "Ω≈ç",
    }.items():  # fmt: skip
        getattr(writer, f"add_{kind}")(f"scalar.{kind}", value)
    writer.add_token_list([f"<{n}>é" for n in range(1000)])
    writer.add_token_scores([n / 3 for n in range(1000)])
    writer.add_array("array.int32", [1, -2, 3])
    writer.add_array("array.bool", [True, False])

    tensor = 0
    for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        if kind in UNLIKE_GGML:
            continue
        # Of 1 to 4 dimensions, whose sizes differ, so that an order mixed up shows.
        outer = (2, 3, 5)[: tensor % 4]
        data = rng.integers(0, 256, (*outer, size * 7), dtype=np.uint8)
        writer.add_tensor(f"blk.{tensor}.{kind.name}", data, raw_dtype=kind)
        tensor += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def exact(value):
    """Floats by the bits of their float64."""
    if isinstance(value, list):
        return [exact(one) for one in value]
    return struct.unpack("<Q", struct.pack("<d", value))[0] if isinstance(value, float) else value


def read(path):
    """{alignment, tensors: [[name, type, row-major shape, offset, SHA-256]], fields: {key: [types, contents]}}"""
    reader = gguf.GGUFReader(path)
    tensors = [
        [
            tensor.name,
            tensor.tensor_type.name,
            [int(side) for side in reversed(tensor.shape)],
            tensor.data_offset,
            hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    ]
    fields = {
        key: [[kind.name for kind in field.types], exact(field.contents())]
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    json.dump({"alignment": int(reader.alignment), "tensors": tensors, "fields": fields}, sys.stdout)


{"write": write, "read": read}[sys.argv[1]](sys.argv[2])
