"""Tensors in place: safetensors and GGUF, held against the packages of those formats."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
from conftest import safetensors as written
from numpy.typing import NDArray

from tabagent_model_cache import (
    FileNotInRepo,
    FormatError,
    ModelCache,
    ModelFile,
    NotFound,
    TensorNotFound,
    load_safetensors,
)

REPO = "me/tensors"


def stored(cache: ModelCache, path: Path) -> ModelFile:
    cache.import_files(REPO, path)
    file = cache.get_file(REPO, path.name)
    assert file is not None
    return file


def lies_in(array: NDArray[Any], file: ModelFile) -> bool:
    return np.shares_memory(array, np.frombuffer(file, np.uint8))


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    numbers = np.arange(64 * 256, dtype=np.float32).reshape(64, 256) / 1000
    writer.add_tensor("full", numbers)
    writer.add_tensor("half", numbers.astype(np.float16)[:3])
    writer.add_tensor("ints", np.arange(6, dtype=np.int32).reshape(2, 3))
    for kind in [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0]:
        writer.add_tensor(kind.name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    brain = gguf.GGMLQuantizationType.BF16
    writer.add_tensor("brain", gguf.quants.quantize(numbers, brain), raw_dtype=brain)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_has_the_tensors_its_own_reader_finds_in_place(cache: ModelCache, gguf_path: Path) -> None:
    file = stored(cache, gguf_path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_path).tensors}
    assert list(file.tensors) == list(theirs)
    for name, tensor in file.tensors.items():
        other = theirs[name]
        assert (tensor.name, tensor["dtype"], tensor.nbytes) == (name, other.tensor_type.name, other.n_bytes)
        assert tensor.shape == tuple(int(n) for n in reversed(other.shape))
        assert tensor.start == other.data_offset
        array = file.tensor(name, raw=True)
        assert lies_in(array, file) and not array.flags.writeable
        assert array.tobytes() == other.data.tobytes()
    assert file.tensor("full").dtype == np.float32 and file.tensor("half").dtype == np.float16
    np.testing.assert_array_equal(file.tensor("ints"), [[0, 1, 2], [3, 4, 5]])
    # Blocks come as bytes, row by row: as the package of the format takes them.
    blocks = file.tensor("Q8_0")
    assert blocks.dtype == np.uint8 and blocks.shape == (64, 256 // 32 * 34)
    numbers = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[file.tensors["Q8_0"].dtype])
    np.testing.assert_allclose(numbers, file.tensor("full"), atol=0.1)


def test_a_safetensors_file_has_what_its_own_reader_finds_in_place(cache: ModelCache, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays: dict[str, NDArray[Any]] = {
        str(np.dtype(kind)): (np.arange(24).reshape(2, 3, 4) % 2).astype(kind)
        for kind in ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
    }
    arrays |= {"scalar": np.array(7, np.float32), "empty": np.empty((0, 5), np.int64)}
    safetensors.numpy.save_file(arrays, path)
    loaded = load_safetensors(cache_with(cache, path), REPO, path.name)
    file = cache.get_file(REPO, path.name)
    assert file is not None and loaded.keys() == arrays.keys() == file.tensors.keys()
    for name, array in safetensors.numpy.load_file(path).items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)
        np.testing.assert_array_equal(file.tensor(name), array, strict=True)
        assert not array.size or lies_in(file.tensor(name), file)


def cache_with(cache: ModelCache, path: Path) -> ModelCache:
    stored(cache, path)
    return cache


def test_the_arrays_keep_the_file_from_being_freed(cache: ModelCache, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"w": np.arange(100_000, dtype=np.float32)}, path)
    arrays = load_safetensors(cache_with(cache, path), REPO, path.name)
    part = arrays.pop("w")[50_000:]
    assert cache.delete_model(REPO).busy_bytes == path.stat().st_size
    assert part[0] == 50_000
    del part
    assert cache.get_stats().doomed_bytes == 0


def test_bf16_is_never_converted_silently(cache: ModelCache, tmp_path: Path) -> None:
    import ml_dtypes

    numbers = np.array([[1.5, -2.0, 3.25]], ml_dtypes.bfloat16)
    (tmp_path / "b.safetensors").write_bytes(written({"b": ("BF16", [1, 3], numbers.tobytes())}))
    file = stored(cache, tmp_path / "b.safetensors")
    assert file.tensors["b"].dtype == "BF16"
    assert file.tensor("b").dtype == ml_dtypes.bfloat16 and (file.tensor("b") == numbers).all()
    bits = file.tensor("b", raw=True)
    assert bits.dtype == np.uint16 and (bits == numbers.view(np.uint16)).all() and lies_in(bits, file)
    assert load_safetensors(cache, REPO, "b.safetensors", raw=True)["b"].dtype == np.uint16


def test_without_ml_dtypes_bf16_is_an_error_that_names_both_ways_out(
    cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.safetensors").write_bytes(written({"b": ("BF16", [2], b"\0\1\2\3")}))
    file = stored(cache, tmp_path / "b.safetensors")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(FormatError, match="b is BF16") as raised:
        file.tensor("b")
    assert raised.value.hint is not None and "ml_dtypes" in raised.value.hint and "raw=True" in raised.value.hint
    assert file.tensor("b", raw=True).tolist() == [0x0100, 0x0302]


def test_tensors_at_any_byte_are_read_in_place(cache: ModelCache, tmp_path: Path) -> None:
    # Three bytes before it: nothing after is aligned.
    path = tmp_path / "odd.safetensors"
    floats, integer = struct.pack("<2f", 1.5, -2), struct.pack("<q", -7)
    path.write_bytes(written({"a": ("U8", [3], b"abc"), "f": ("F32", [2], floats), "i": ("I64", [1], integer)}))
    file = stored(cache, path)
    assert file.tensor("f").tolist() == [1.5, -2] and file.tensor("i").tolist() == [-7]
    assert lies_in(file.tensor("f"), file)


def test_a_tensor_that_is_not_there_is_told_with_the_one_most_like_it(cache: ModelCache, gguf_path: Path) -> None:
    file = stored(cache, gguf_path)
    with pytest.raises(TensorNotFound) as raised:
        file.tensor("fulls")
    assert isinstance(raised.value, KeyError) and str(raised.value).startswith(REPO) and "fulls" in str(raised.value)
    with pytest.raises(KeyError):
        file.tensors["fulls"]
    with pytest.raises(TypeError):
        file.tensors["new"] = None  # type: ignore[index]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"GGUF",
        b"GGUF\3\0\0\0" + b"\xff" * 16,
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        written({"a": ("F32", [2], b"1234567")}),
        written({"a": ("F32", [1 << 60, 1 << 60], b"12345678")}),
        written({"a": ("NO_SUCH", [1], b"1")}),
    ],
)
def test_a_file_that_lies_is_an_error_with_its_name(cache: ModelCache, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lie.bin").write_bytes(content)
    file = stored(cache, tmp_path / "lie.bin")
    for use in [lambda: file.tensors, lambda: file.tensor("a"), lambda: load_safetensors(cache, REPO, "lie.bin")]:
        with pytest.raises(FormatError) as raised:
            use()
        assert isinstance(raised.value, ValueError) and str(raised.value).startswith(f"{REPO} lie.bin: not a")


def test_loading_what_is_not_here_says_how_to_get_it(cache: ModelCache) -> None:
    with pytest.raises(FileNotInRepo) as raised:
        load_safetensors(cache, REPO, "model.safetensors")
    assert isinstance(raised.value, NotFound) and raised.value.hint is not None and "download_file" in raised.value.hint


def test_the_package_works_without_numpy_until_a_tensor_is_asked_for(cache: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(written({"a": ("U8", [3], b"abc")}))
    stored(cache, tmp_path / "t.safetensors")
    cache.close()
    program = """
import sys
sys.modules["numpy"] = None
from tabagent_model_cache import ModelCache
file = ModelCache(sys.argv[1]).get_file("me/tensors", "t.safetensors")
assert file.tensors["a"].shape == (3,)
try:
    file.tensor("a")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, cache.path], capture_output=True, text=True, check=True, env=os.environ)
    assert "pip install numpy" in done.stdout
