"""What the calls give back, and the exceptions: their two faces, and that they can be sent elsewhere."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import BIG, REPO

import tabagent_model_cache as package
from tabagent_model_cache import (
    AlreadyExists,
    ModelCache,
    ModelCacheError,
    NotFound,
    NotInStore,
    Record,
    exceptions,
)

GGUF = "org/model-GGUF"


def all_values(cache: ModelCache, tmp_path: Path) -> list[Record]:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    manifest = cache.scan_repo(REPO)
    report = cache.download_file(REPO, BIG)
    imported = cache.import_files("me/mine", tmp_path / "mine")
    exported = cache.export("me/mine", tmp_path / "out")
    file = cache.get_file(REPO, BIG)
    assert file is not None
    tensor = file.tensors["weight"]
    kept = [manifest, report, imported, exported, tensor, *cache.list(), *cache.files(REPO), cache.get_stats(), cache.verify()]
    return [*kept, cache.delete_model("me/mine"), cache.gc()]


def test_values_are_attributes_and_mappings_alike(cache: ModelCache, tmp_path: Path) -> None:
    for value in all_values(cache, tmp_path):
        assert isinstance(value, Mapping) and len(value) > 1
        assert list(value) == list(value.keys()) == list(dict(value))
        for name in value:
            assert name in value and value[name] is getattr(value, name) and value.get(name) is value[name]
        for absent in ["no_such", "to_dict", "keys", "__class__", 3]:
            assert absent not in value
            with pytest.raises(KeyError):
                value[absent]  # type: ignore[index]
        with pytest.raises(AttributeError):
            setattr(value, next(iter(value)), 7)


def test_values_survive_json_pickle_and_copies_and_equal_what_they_say(cache: ModelCache, tmp_path: Path) -> None:
    for value in all_values(cache, tmp_path):
        plain = value.to_dict()
        assert json.loads(json.dumps(plain)) == plain
        for same in [pickle.loads(pickle.dumps(value)), copy.deepcopy(value)]:
            assert type(same) is type(value) and same == value and repr(same) == repr(value)
        assert value == dict(value) and value != {**value, "more": 1} and value != 3
        assert repr(value).startswith(type(value).__name__ + "(")


def test_a_manifest_reads_as_the_dict_people_know(cache: ModelCache) -> None:
    assert cache.local_manifest(GGUF) is None
    manifest = cache.get_manifest(GGUF)
    assert cache.local_manifest(GGUF) == manifest
    quant = manifest["quants"]["Q4_K_M"]
    assert quant["status"] == "available" and quant["downloaded_size"] == 0 and quant["total_size"] > 3 << 20
    assert quant["files"] == ["config.json", "model-Q4_K_M.gguf"] == manifest.quants["Q4_K_M"].files
    assert [file["path"] for file in manifest["files"]] == ["config.json", "model-Q4_K_M.gguf", "model-Q8_0.gguf"]
    assert manifest.to_dict()["quants"]["Q8_0"]["own_files"] == ["model-Q8_0.gguf"]
    assert manifest == manifest.to_dict()


def test_imports_and_exports_give_back_the_same_files(cache: ModelCache, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "small.txt").write_text("small")
    (folder / "big.bin").write_bytes(bytes(range(256)) * 1024)
    told: list[tuple[int, int]] = []
    report = cache.import_files("me/mine", [str(folder)], progress=lambda loaded, total: told.append((loaded, total)))
    assert (report.files, report.size_bytes, report.here_bytes) == (2, 5 + 256 * 1024, 0)
    assert told[-1] == (report.size_bytes, report.size_bytes)
    assert cache.is_imported("me/mine") and not cache.is_imported(REPO)
    exported = cache.export("me/mine", tmp_path / "out", "*.bin")
    assert exported.paths == [str(tmp_path / "out" / "big.bin")]
    assert (tmp_path / "out" / "big.bin").read_bytes() == (folder / "big.bin").read_bytes()
    with pytest.raises(AlreadyExists) as raised:
        cache.export("me/mine", tmp_path / "out")
    assert isinstance(raised.value, FileExistsError) and raised.value.errno == errno.EEXIST
    assert cache.export("me/mine", tmp_path / "out", force=True).files == 2
    assert cache.delete_files("me/mine", ["*.txt"]).files == 1
    assert [file.path for file in cache.files("me/mine")[0].files] == ["big.bin"]
    with pytest.raises(NotInStore):
        cache.files("me/none")
    with pytest.raises(FileNotFoundError) as missing:
        cache.import_files("me/mine", tmp_path / "none")
    assert missing.value.errno == errno.ENOENT
    cause = missing.value.__cause__
    assert isinstance(cause, FileNotFoundError) and cause.errno == errno.ENOENT


def test_damage_is_a_finding_of_verify(cache: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"\xa5" * (6 << 20))
    cache.import_files("me/mine", tmp_path / "big.bin")
    assert cache.verify("me/mine", digest=True).bad == []
    data = cache.path / "model_cache_chunks" / "mdbx.dat"
    with data.open("r+b") as file:
        at = file.read().index(b"\xa5" * 4096) + (5 << 20) + 100
        file.seek(at)
        file.write(b"\x5a")
        file.flush()
        os.fsync(file.fileno())
    bad = cache.verify("me/mine").bad
    assert [(block.path, block["chunk"], block.block) for block in bad] == [("big.bin", 0, 1)]


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_exception_survives_pickle_with_all_it_says(name: str) -> None:
    kind = getattr(package, name)
    error = kind("what happened", hint="what to do", code="other")
    for same in [pickle.loads(pickle.dumps(error)), copy.copy(error)]:
        assert type(same) is kind and str(same) == "what happened"
        assert (same.hint, same.code, same.__notes__) == ("what to do", "other", ["hint: what to do"])
        assert getattr(same, "errno", None) == getattr(error, "errno", None)
    assert isinstance(error, ModelCacheError) and kind.__doc__
    assert not hasattr(kind("m"), "__notes__") and kind("m").hint is None and str(kind()) == ""


def test_an_error_raised_by_the_store_survives_pickle(cache: ModelCache) -> None:
    with pytest.raises(NotFound) as raised:
        cache.delete_model("org/never")
    same = pickle.loads(pickle.dumps(raised.value))
    assert (type(same), str(same), same.hint, same.code) == (NotInStore, str(raised.value), raised.value.hint, "not_found")
    assert "org/never" in str(same) and same.errno == errno.ENOENT


def test_wrong_argument_types_are_told_with_the_name_of_the_argument(cache: ModelCache) -> None:
    for name, call in {
        "repo": lambda: cache.get_file(3, "x"),
        "path": lambda: cache.get_file(REPO, None),
        "quant": lambda: cache.download_quant(REPO, 7),
        "progress": lambda: cache.download_file(REPO, BIG, 5),
        "cancel": lambda: cache.download_file(REPO, BIG, cancel="now"),
        "files": lambda: cache.pull(REPO, files=[1]),
        "paths": lambda: cache.import_files(REPO, 5),
        "connections": lambda: ModelCache("x", connections="many"),
        "endpoint": lambda: ModelCache("x", endpoint=80),
        "name": lambda: cache.get_file(REPO, BIG).tensor(1),
    }.items():
        cache.download_file(REPO, BIG)
        with pytest.raises(TypeError) as raised:
            call()
        assert name in "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    for call, wrong in [(lambda: cache.get_file("model", "x"), "model"), (lambda: cache.get_file(REPO, "a/../b"), "a/../b")]:
        with pytest.raises(ValueError, match=wrong):
            call()


def test_the_default_store_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_CACHE_HOME", str(tmp_path / "home"))
    with ModelCache() as cache:
        assert cache.path == tmp_path / "home" and cache.path.is_dir()


def test_reading_and_writing_whole_files_can_be_ended_as_a_pull_can(cache: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(bytes(12 << 20))
    stopped = package.CancelToken()
    stopped.cancel()

    def enough(loaded: int, total: int) -> None:
        raise ZeroDivisionError(loaded)

    with pytest.raises(package.Cancelled):
        cache.import_files("me/mine", tmp_path / "big.bin", cancel=stopped)
    with pytest.raises(ZeroDivisionError):
        cache.import_files("me/mine", tmp_path / "big.bin", enough)
    cache.import_files("me/mine", tmp_path / "big.bin")
    with pytest.raises(package.Cancelled):
        cache.verify(cancel=stopped)
    with pytest.raises(ZeroDivisionError):
        cache.verify(progress=enough)
    with pytest.raises(package.Cancelled):
        cache.export("me/mine", tmp_path / "out", cancel=stopped)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
