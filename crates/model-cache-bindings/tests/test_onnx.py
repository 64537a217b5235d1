"""ONNX Runtime on the store: outputs are those by path, leases last as long as ORT maps, and what can't be done is said.

Models are made here with the package onnx; the big one has two weights across an edge of a chunk.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import shutil
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tabagent_model_cache import (
    ClosedError,
    FileNotInRepo,
    NotInStore,
    ForkedError,
    FormatError,
    InvalidInput,
    ModelCache,
    NotFound,
    SessionCache,
    onnx_session,
)

MIB = 1 << 20
CHUNK = 100 * MIB
LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
FLOAT = TensorProto.FLOAT
SIDE = 2048


# -- models ---------------------------------------------------------------------------------------------------------------


def opsets(version: int = 21) -> list[Any]:
    return [helper.make_opsetid("", version)]


def value(name: str, shape: list[Any], kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def external(name: str, kind: int, dims: list[int], location: str, offset: int | None = None, length: int | None = None) -> Any:
    """A tensor whose data is elsewhere, told as sparsely as is asked."""
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, number in (("location", location), ("offset", offset), ("length", length)):
        if number is not None:
            tensor.external_data.add(key=key, value=str(number))
    return tensor


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """224 MiB of float32 in 14 layers: with external data as model.onnx, and as single.onnx. Every fourth weight is transposed in the
    graph, which ONNX Runtime does once, at load, from "basic" on."""
    folder = tmp_path_factory.mktemp("big")
    noise = np.random.default_rng(1)
    nodes, weights, x = [], [], "x"
    for layer in range(14):
        weight = f"w{layer}"
        weights.append(numpy_helper.from_array(noise.standard_normal((SIDE, SIDE), dtype=np.float32) / 45, weight))
        weights.append(numpy_helper.from_array(noise.standard_normal(SIDE, dtype=np.float32), f"b{layer}"))
        if layer % 4 == 2:
            nodes.append(helper.make_node("Transpose", [weight], [f"t{layer}"], perm=[1, 0]))
            weight = f"t{layer}"
        nodes.append(helper.make_node("MatMul", [x, weight], [f"y{layer}"]))
        nodes.append(helper.make_node("Add", [f"y{layer}", f"b{layer}"], [f"z{layer}"]))
        x = f"z{layer}"
    graph = helper.make_graph(nodes, "big", [value("x", ["n", SIDE])], [value(x, ["n", SIDE])], weights)
    model = helper.make_model(graph, opset_imports=opsets(17), ir_version=8)
    onnx.save_model(model, folder / "single.onnx")
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def big_cache(big: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelCache]:
    store = tmp_path_factory.mktemp("big_store")
    with ModelCache(store, offline=True) as cache:
        cache.import_files("org/big", [big])
        yield cache
    shutil.rmtree(store)


@pytest.fixture
def local(open_cache: Callable[..., ModelCache]) -> ModelCache:
    """A store of the test's own."""
    return open_cache(offline=True)


def options(level: str = "all", prepack: bool | None = None) -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.graph_optimization_level = LEVELS[level]
    made.log_severity_level = 3
    if prepack is not None:
        made.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    return made


INPUT = np.random.default_rng(2).standard_normal((3, SIDE), dtype=np.float32)


def run_big(session: ort.InferenceSession) -> Any:
    (output,) = session.run(None, {"x": INPUT})
    return output


@pytest.fixture(scope="session")
def by_path(big: Path) -> Callable[[str, bool], np.ndarray[Any, Any]]:
    """What the big model gives where ONNX Runtime loads it by path."""
    known: dict[tuple[str, bool], np.ndarray[Any, Any]] = {}

    def output(level: str, prepack: bool) -> np.ndarray[Any, Any]:
        if (level, prepack) not in known:
            known[level, prepack] = run_big(ort.InferenceSession(big / "model.onnx", options(level, prepack)))
        return known[level, prepack]

    return output


# -- outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepack", [False, True], ids=["unpacked", "prepacked"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("file", "edges"), [("model.onnx", "inject"), ("model.onnx", "derive"), ("single.onnx", "inject")])
def test_outputs_are_bit_equal_to_those_by_path_whatever_is_folded_packed_or_across_edges(
    big_cache: ModelCache, by_path: Any, file: str, edges: Any, level: str, prepack: bool
) -> None:
    session = onnx_session(big_cache, "org/big", file, prepack=prepack, session_options=options(level), edges=edges)
    assert session.store_report["prepack"] == prepack
    assert np.array_equal(run_big(session), by_path(level, prepack))


def test_what_became_of_each_tensor_is_told_and_logged(big_cache: ModelCache, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tabagent_model_cache"):
        report = onnx_session(big_cache, "org/big", "model.onnx").store_report
    edges = {"tensors": 2, "size_bytes": 32 * MIB}
    none = {"tensors": 0, "size_bytes": 0}
    pointed = {"tensors": 26, "size_bytes": 192 * MIB + 14 * 4 * SIDE}
    assert report == {
        "pointed": pointed,
        "derived": none,
        "injected": edges,
        "inlined": none,
        "kept": none,
        "copied": {"edge": edges},
        "prepack": False,
    }
    (said,) = [record.getMessage() for record in caplog.records if record.name == "tabagent_model_cache.onnx"]
    assert said.startswith("org/big model.onnx: 28 tensors (224.11 MiB): 26 (192.11 MiB) mapped, 2 (32.00 MiB) injected; copied: 2 ")
    assert said.endswith("across an edge of a chunk; prepacking off")
    derived = onnx_session(big_cache, "org/big", "single.onnx", edges="derive", align=True).store_report
    assert derived["derived"] == edges and derived["injected"]["tensors"] + derived["pointed"]["tensors"] == 26


def test_set_providers_makes_the_session_anew_with_all_its_weights(big_cache: ModelCache, by_path: Any) -> None:
    session = onnx_session(big_cache, "org/big", "model.onnx", edges="inject", prepack=False)
    session.set_providers(["CPUExecutionProvider"])
    assert np.array_equal(run_big(session), by_path("all", False))


def test_a_rewritten_graph_is_one_the_package_onnx_reads_and_differs_in_the_place_of_data_only(
    big: Path, big_cache: ModelCache, tmp_path: Path
) -> None:
    for file in ("model.onnx", "single.onnx"):
        plan = big_cache._onnx("org/big", file).plan()
        planned = onnx.load_model_from_string(plan.graph())
        stored = onnx.load_model(big / file, load_external_data=False)
        # The checker looks for external data beside the model.
        (tmp_path / file).write_bytes(plan.graph())
        assert plan.data_file is not None
        beside = tmp_path / plan.data_file.name
        beside.touch()
        os.truncate(beside, plan.data_file.stat().st_size)
        onnx.checker.check_model(tmp_path / file)
        for tensor in itertools.chain(planned.graph.initializer, stored.graph.initializer):
            for field in ("raw_data", "external_data", "data_location"):
                tensor.ClearField(field)
        assert planned == stored


# -- layouts --------------------------------------------------------------------------------------------------------------


class Case:
    """A model, its data files, what it is run with, and how many of its tensors can be mapped."""

    def __init__(self, model: Any, feeds: dict[str, Any], pointed: int, files: dict[str, bytes] | None = None) -> None:
        self.model = model
        self.feeds = feeds
        self.pointed = pointed
        self.files = files or {}


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


X = noise(4, 256)


def with_weight(weight: Any, before: list[Any], name: str = "w", version: int = 21, ir_version: int = 10, **more: Any) -> Any:
    """x MatMul the 256 x 256 tensor `name`, which `before` may make of `weight`."""
    nodes = [*before, helper.make_node("MatMul", ["x", name], ["y"])]
    weights = weight if isinstance(weight, list) else [weight]
    graph = helper.make_graph(nodes, "g", [value("x", ["n", 256])], [value("y", ["n", 256])], weights)
    return helper.make_model(graph, opset_imports=opsets(version), ir_version=ir_version, **more)


def several_files() -> Case:
    a, b, c = noise(256, 256), noise(256, 256) * 2, noise(256)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["ya"]), helper.make_node("MatMul", ["ya", "b"], ["yb"])]
    nodes.append(helper.make_node("Add", ["yb", "c"], ["y"]))
    weights = [
        external("a", FLOAT, [256, 256], "a.bin"),
        # Told with a dot, and in a folder; without offset, without length, with both.
        external("b", FLOAT, [256, 256], "./sub/b.bin", offset=100_000),
        external("c", FLOAT, [256], "sub/b.bin", 4096, 1024),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", ["n", 256])], [value("y", ["n", 256])], weights)
    second = b"\1" * 4096 + c.tobytes() + b"\2" * (100_000 - 4096 - 1024) + b.tobytes()
    files = {"a.bin": a.tobytes(), "sub/b.bin": second}
    return Case(helper.make_model(graph, opset_imports=opsets(), ir_version=10), {"x": X}, 3, files)


def single_file() -> Case:
    return Case(with_weight(numpy_helper.from_array(noise(256, 256), "w"), []), {"x": X}, 1)


def packed_floats() -> Case:
    return Case(with_weight(helper.make_tensor("w", FLOAT, [256, 256], noise(256, 256).ravel()), []), {"x": X}, 1)


def unaligned() -> Case:
    model = with_weight(external("w", FLOAT, [256, 256], "w.bin", offset=7), [])
    return Case(model, {"x": X}, 1, {"w.bin": b"\7" * 7 + noise(256, 256).tobytes()})


def half_precision_at_an_odd_offset() -> Case:
    model = with_weight(external("h", TensorProto.FLOAT16, [256, 256], "w.bin", offset=1), [helper.make_node("Cast", ["h"], ["w"], to=FLOAT)])
    return Case(model, {"x": X}, 1, {"w.bin": b"\7" + noise(256, 256).astype(np.float16).tobytes()})


def narrow(kind: int, size_bytes: int, version: int = 23, ir_version: int = 11) -> Callable[[], Case]:
    def case() -> Case:
        data = np.random.default_rng(4).integers(0, 0x78, size_bytes, dtype=np.uint8).tobytes()
        cast = helper.make_node("Cast", ["h"], ["w"], to=FLOAT)
        # Of single files the raw data; here beside the graph, after bytes of nobody.
        model = with_weight(external("h", kind, [256, 256], "w.bin", offset=64 << 10), [cast], version=version, ir_version=ir_version)
        return Case(model, {"x": X}, 1, {"w.bin": bytes(64 << 10) + data})

    return case


def quantised() -> Case:
    weight = np.random.default_rng(5).integers(-128, 127, (256, 256), dtype=np.int8)
    scale = numpy_helper.from_array(np.full(256, 0.01, dtype=np.float32), "s")
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1)
    return Case(with_weight([external("q", TensorProto.INT8, [256, 256], "w.bin"), scale], [node]), {"x": X}, 1, {"w.bin": weight.tobytes() * 2})


def constant() -> Case:
    node = helper.make_node("Constant", [], ["w"], value=external("", FLOAT, [256, 256], "w.bin"))
    return Case(with_weight([], [node]), {"x": X}, 1, {"w.bin": noise(256, 256).tobytes()})


def branches() -> Case:
    def branch(name: str, weight: Any) -> Any:
        node = helper.make_node("MatMul", ["x", name], [f"y{name}"])
        return helper.make_graph([node], name, [], [value(f"y{name}", ["n", 256])], [weight])

    then = branch("a", external("a", FLOAT, [256, 256], "w.bin"))
    otherwise = branch("b", external("b", FLOAT, [256, 256], "w.bin", offset=100))
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)
    inputs = [value("c", [], TensorProto.BOOL), value("x", ["n", 256])]
    graph = helper.make_graph([node], "g", inputs, [value("y", ["n", 256])])
    model = helper.make_model(graph, opset_imports=opsets(), ir_version=10)
    return Case(model, {"c": np.array(False), "x": X}, 2, {"w.bin": noise(257, 256).tobytes()})


def loop() -> Case:
    nodes = [helper.make_node("MatMul", ["h", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["o"]), helper.make_node("Identity", ["c"], ["d"])]
    inputs = [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("h", ["n", 256])]
    outputs = [value("d", [], TensorProto.BOOL), value("o", ["n", 256])]
    body = helper.make_graph(nodes, "body", inputs, outputs, [external("w", FLOAT, [256, 256], "w.bin")])
    count = numpy_helper.from_array(np.array(3, dtype=np.int64), "count")
    node = helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)
    graph = helper.make_graph([node], "g", [value("x", ["n", 256])], [value("y", ["n", 256])], [count])
    return Case(helper.make_model(graph, opset_imports=opsets(), ir_version=10), {"x": X}, 1, {"w.bin": noise(256, 256).tobytes()})


def function() -> Case:
    inner = [helper.make_node("Constant", [], ["w"], value=external("", FLOAT, [256, 256], "w.bin")), helper.make_node("MatMul", ["a", "w"], ["b"])]
    made = helper.make_function("local", "Dense", ["a"], ["b"], inner, opsets())
    node = helper.make_node("Dense", ["x"], ["y"], domain="local")
    graph = helper.make_graph([node], "g", [value("x", ["n", 256])], [value("y", ["n", 256])])
    imports = [*opsets(), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=[made])
    return Case(model, {"x": X}, 1, {"w.bin": noise(256, 256).tobytes()})


def sparse() -> Case:
    count = 60_000
    places = np.sort(np.random.default_rng(6).permutation(256 * 256)[:count]).astype(np.int64)
    values, indices = external("w", FLOAT, [count], "w.bin"), external("i", TensorProto.INT64, [count], "w.bin", 4 * count)
    graph = with_weight([], []).graph
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [256, 256]))
    model = helper.make_model(graph, opset_imports=opsets(), ir_version=10)
    return Case(model, {"x": X}, 2, {"w.bin": noise(count).tobytes() + places.tobytes()})


def small_shapes() -> Case:
    # ORT does not read a shape from another file; by path this model can't be loaded. Beside its weight it is run all the same.
    reshape = helper.make_node("Reshape", ["f", "shape"], ["w"])
    weights = [external("f", FLOAT, [256 * 256], "w.bin", 16), external("shape", TensorProto.INT64, [2], "w.bin", 0, 16)]
    data = np.array([256, 256], dtype=np.int64).tobytes() + noise(256, 256).tobytes()
    return Case(with_weight(weights, [reshape]), {"x": X}, 1, {"w.bin": data})


def strings() -> Case:
    # Text stays in the graph, beside weights that do not.
    text = numpy_helper.from_array(np.array([f"word {index}" for index in range(300)], dtype=object), "text")
    model = with_weight([text, external("w", FLOAT, [256, 256], "w.bin")], [helper.make_node("Identity", ["text"], ["said"])])
    model.graph.output.append(value("said", [300], TensorProto.STRING))
    return Case(model, {"x": X}, 1, {"w.bin": noise(256, 256).tobytes()})


CASES = {
    "several files": several_files,
    "single file": single_file,
    "packed floats": packed_floats,
    "unaligned": unaligned,
    "half precision at an odd offset": half_precision_at_an_odd_offset,
    "bfloat16": narrow(TensorProto.BFLOAT16, 256 * 256 * 2),
    "float8": narrow(TensorProto.FLOAT8E4M3FN, 256 * 256),
    "int4": narrow(TensorProto.INT4, 256 * 256 // 2),
    "int8": quantised,
    "constant": constant,
    "branches": branches,
    "loop": loop,
    "function": function,
    "sparse": sparse,
    "strings": strings,
}


def save(case: Case, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("align", [False, True], ids=["as it lies", "aligned"])
@pytest.mark.parametrize("name", CASES)
def test_every_layout_gives_the_outputs_by_path(local: ModelCache, tmp_path: Path, name: str, align: bool) -> None:
    case = CASES[name]()
    path = save(case, tmp_path / "m")
    local.import_files("org/m", [tmp_path / "m"])
    for level, prepack in (("all", True), ("all", False), ("disabled", True)):
        expected = ort.InferenceSession(path, options(level, prepack)).run(None, case.feeds)
        session = onnx_session(local, "org/m", "model.onnx", prepack=prepack, session_options=options(level), align=align)
        for found, wanted in zip(session.run(None, case.feeds), expected, strict=True):
            # Bits, not numbers: random ones of narrow types may be NaN.
            assert found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes() if found.dtype != object else list(found) == list(wanted)
        report = session.store_report
        mapped = report["pointed"]["tensors"]
        assert mapped == case.pointed or (align and "unaligned" in report["copied"]), report


def test_a_small_tensor_beside_the_graph_is_brought_into_it_and_mends_a_model_ort_refuses_by_path(
    local: ModelCache, tmp_path: Path
) -> None:
    case = small_shapes()
    path = save(case, tmp_path / "m")
    local.import_files("org/m", [tmp_path / "m"])
    with pytest.raises(Exception, match="external"):
        ort.InferenceSession(path, options())
    session = onnx_session(local, "org/m", "model.onnx", session_options=options())
    assert session.store_report["copied"] == {"small": {"tensors": 1, "size_bytes": 16}}
    (output,) = session.run(None, case.feeds)
    assert np.allclose(output, X @ noise(256, 256), atol=1e-3)


def test_weights_beyond_2_gib_are_mapped(local: ModelCache, tmp_path: Path) -> None:
    # A hole on the way in; in the store it takes its place, so that offsets in the data file are beyond 2 GiB too.
    offset = (2 << 30) + 12_288
    model = with_weight(external("w", FLOAT, [256, 256], "w.bin", offset, 256 * 256 * 4), [])
    path = save(Case(model, {}, 1, {"w.bin": b""}), tmp_path / "m")
    with (tmp_path / "m" / "w.bin").open("r+b") as data:
        data.seek(offset)
        data.write(noise(256, 256).tobytes())
    local.import_files("org/m", [tmp_path / "m"])
    session = onnx_session(local, "org/m", "model.onnx", session_options=options())
    assert session.store_report["pointed"]["tensors"] == 1
    expected = ort.InferenceSession(path, options("all", session.store_report["prepack"])).run(None, {"x": X})
    assert np.array_equal(session.run(None, {"x": X}), expected)


@pytest.mark.parametrize(
    ("name", "prepack"), [("single file", False), ("int8", True), ("int4", True), ("half precision at an odd offset", True)]
)
def test_prepacking_is_off_by_default_only_where_it_costs_little(local: ModelCache, tmp_path: Path, name: str, prepack: bool) -> None:
    save(CASES[name](), tmp_path / "m")
    local.import_files("org/m", [tmp_path / "m"])
    assert onnx_session(local, "org/m", "model.onnx").store_report["prepack"] == prepack


# -- leases ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def removable(local: ModelCache, tmp_path: Path) -> ModelCache:
    """A store with a model of its own to remove: a weight beside the graph."""
    model = with_weight(external("w", FLOAT, [256, 256], "w.bin"), [])
    save(Case(model, {}, 1, {"w.bin": noise(256, 256).tobytes()}), tmp_path / "m")
    local.import_files("org/m", [tmp_path / "m"])
    return local


def kept_bytes(cache: ModelCache) -> int:
    gc.collect()
    stats = cache.get_stats()
    return stats.doomed_bytes + stats.live_bytes


def test_a_removed_model_keeps_its_bytes_until_its_session_is_gone(removable: ModelCache, tmp_path: Path) -> None:
    session = onnx_session(removable, "org/m", "model.onnx", prepack=False)
    expected = session.run(None, {"x": X})
    removable.delete_model("org/m")
    # What would be put into its place, were it free.
    for index in range(4):
        (tmp_path / "other.bin").write_bytes(bytes([index]) * (256 * 256 * 4))
        removable.import_files("org/other", [tmp_path / "other.bin"])
        removable.delete_model("org/other")
    assert np.array_equal(session.run(None, {"x": X}), expected)
    assert removable.get_stats().doomed_bytes == 256 * 256 * 4
    with pytest.raises(NotInStore):
        onnx_session(removable, "org/m", "model.onnx")
    del session
    assert kept_bytes(removable) == 0


@pytest.mark.parametrize("holder", ["io_binding", "get_inputs"])
def test_the_lease_lasts_as_long_as_anything_keeps_orts_own_session_alive(removable: ModelCache, holder: str) -> None:
    session = onnx_session(removable, "org/m", "model.onnx", prepack=False)
    (expected,) = session.run(None, {"x": X})
    native = session._sess
    held = getattr(session, holder)()
    removable.delete_model("org/m")
    del session
    assert kept_bytes(removable) == 256 * 256 * 4
    if holder == "io_binding":
        held.bind_cpu_input("x", X)
        held.bind_output("y")
        native.run_with_iobinding(held._iobinding, None)
        assert np.array_equal(held.copy_outputs_to_cpu()[0], expected)
    del native
    assert kept_bytes(removable) == 256 * 256 * 4
    del held
    assert kept_bytes(removable) == 0


def test_a_session_that_could_not_be_made_keeps_nothing(removable: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    model = with_weight(external("w", FLOAT, [256, 256], "w.bin"), [helper.make_node("NoSuchOperator", ["x"], ["z"])])
    (tmp_path / "bad" / "model.onnx").write_bytes(model.SerializeToString())
    removable.import_files("org/m", [tmp_path / "bad"])
    with pytest.raises(Exception, match="NoSuchOperator"):
        onnx_session(removable, "org/m", "model.onnx")
    removable.delete_model("org/m")
    assert kept_bytes(removable) == 0


def test_a_session_outlives_its_cache(big: Path, removable: ModelCache) -> None:
    session = onnx_session(removable, "org/m", "model.onnx")
    expected = session.run(None, {"x": X})
    removable.close()
    assert np.array_equal(session.run(None, {"x": X}), expected)
    with pytest.raises(ClosedError):
        onnx_session(removable, "org/m", "model.onnx")


# -- options --------------------------------------------------------------------------------------------------------------


def entry(made: ort.SessionOptions, key: str) -> str | None:
    try:
        return made.get_session_config_entry(key)  # type: ignore[no-any-return]
    except RuntimeError:
        return None


def test_nothing_of_a_session_gets_into_the_callers_options(big: Path, big_cache: ModelCache, removable: ModelCache) -> None:
    mine = options("basic")
    mine.add_session_config_entry("session.intra_op.allow_spinning", "0")
    mine.intra_op_num_threads = 1
    # With tensors that are injected, with none, and by path: each as if it were the first.
    for _ in range(2):
        session = onnx_session(big_cache, "org/big", "model.onnx", session_options=mine, edges="inject")
        other = onnx_session(removable, "org/m", "model.onnx", session_options=mine)
        assert other.run(None, {"x": X})
        ort.InferenceSession(big / "model.onnx", mine)
    assert entry(mine, "session.disable_prepacking") is None
    assert entry(mine, "session.model_external_initializers_file_folder_path") is None
    # And theirs into the session.
    told = session.get_session_options()
    assert (told.graph_optimization_level, told.intra_op_num_threads) == (LEVELS["basic"], 1)
    assert entry(told, "session.intra_op.allow_spinning") == "0"


def test_options_may_be_made_by_a_function_which_is_called_for_each_session(removable: ModelCache) -> None:
    made = []

    def make() -> ort.SessionOptions:
        mine = options()
        mine.add_provider("CPUExecutionProvider", {})
        made.append(mine)
        return mine

    session = onnx_session(removable, "org/m", "model.onnx", session_options=make)
    assert session.run(None, {"x": X}) and made
    with pytest.raises(TypeError, match="made a int"):
        onnx_session(removable, "org/m", "model.onnx", session_options=lambda: 1)
    with pytest.raises(TypeError, match="not a dict"):
        onnx_session(removable, "org/m", "model.onnx", session_options={})


def test_options_that_contradict_are_refused(removable: ModelCache) -> None:
    def refused(match: str, mine: ort.SessionOptions, **more: Any) -> None:
        with pytest.raises(InvalidInput, match=match):
            onnx_session(removable, "org/m", "model.onnx", session_options=mine, **more)

    folder = ort.SessionOptions()
    folder.add_session_config_entry("session.model_external_initializers_file_folder_path", "/elsewhere")
    refused("store's folder", folder)
    refused("prepack=True contradicts", options(prepack=False), prepack=True)
    refused("prepack=False contradicts", options(prepack=True), prepack=False)
    saving = ort.SessionOptions()
    saving.optimized_model_filepath = "saved.onnx"
    refused("optimized_model_filepath", saving)
    providers = ort.SessionOptions()
    providers.add_provider("CPUExecutionProvider", {})
    refused("a function", providers)
    refused('"auto", "inject" or "derive"', ort.SessionOptions(), edges="drop")
    # What the options say stands where nothing else was asked for.
    report = onnx_session(removable, "org/m", "model.onnx", session_options=options(prepack=True)).store_report
    assert report["prepack"] is True


def test_without_onnxruntime_the_error_says_what_to_install(removable: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        onnx_session(removable, "org/m", "model.onnx")
    old = types.ModuleType("onnxruntime")
    old.__version__ = "1.9.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", old)
    with pytest.raises(ImportError, match=r"1\.9\.0 is installed: pip install --upgrade"):
        onnx_session(removable, "org/m", "model.onnx")


# -- what is refused ------------------------------------------------------------------------------------------------------


def deep(depth: int) -> bytes:
    """A graph in a graph, so deep."""
    body = b""

    def message(field: int, body: bytes) -> bytes:
        length, size = b"", len(body)
        while size >= 0x80:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([field << 3 | 2]) + length + bytes([size]) + body

    for _ in range(depth):
        body = message(1, message(5, message(6, body)))
    return message(7, body)


WHOLE = with_weight(external("w", FLOAT, [256, 256], "w.bin"), []).SerializeToString()


@pytest.mark.parametrize(
    ("graph", "error", "match"),
    [
        (WHOLE[:-40], FormatError, "begins where"),
        (b"not a graph at all, but text", FormatError, "org/m model.onnx"),
        (deep(40_000), FormatError, "nest deeper than 100"),
        (with_weight(external("w", FLOAT, [256, 256], "../w.bin"), []), FormatError, "outside the graph's folder"),
        (with_weight(external("w", FLOAT, [256, 256], "/etc/passwd"), []), FormatError, "absolute"),
        (with_weight(external("w", FLOAT, [256, 256], "w.bin", 1 << 62), []), FormatError, "4611686018427387904"),
        (with_weight(external("w", FLOAT, [256, 256], "w.bin", 0, 8), []), FormatError, "262144 bytes, and has 8"),
        (with_weight(external("w", FLOAT, [1 << 40, 1 << 40], "w.bin"), []), FormatError, "than can be counted"),
        (with_weight(external("w", FLOAT, [256, 256], "v.bin"), []), NotFound, "v.bin, which is not in the store"),
    ],
)
def test_graphs_that_can_not_be_used_are_refused_with_the_reason(
    removable: ModelCache, tmp_path: Path, graph: Any, error: type[Exception], match: str
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.onnx").write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
    removable.import_files("org/m", [tmp_path / "bad"])
    with pytest.raises(error, match=match):
        onnx_session(removable, "org/m", "model.onnx")


def test_a_model_that_is_not_here_is_told(removable: ModelCache) -> None:
    with pytest.raises(FileNotInRepo, match=r"other\.onnx"):
        onnx_session(removable, "org/m", "other.onnx")
    with pytest.raises(InvalidInput):
        onnx_session(removable, "no repo", "model.onnx")
    with pytest.raises(TypeError):
        onnx_session(removable, "org/m", 5)  # type: ignore[arg-type]


# -- several sessions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def three(local: ModelCache, tmp_path: Path) -> ModelCache:
    """A store with three models of 256 KiB, the third under a second name."""
    for index in range(3):
        model = with_weight(external("w", FLOAT, [256, 256], "w.bin"), [])
        save(Case(model, {}, 1, {"w.bin": (noise(256, 256) + index).tobytes()}), tmp_path / str(index))
        local.import_files(f"org/m{index}", [tmp_path / str(index)])
    local.import_files("org/again", [tmp_path / "2"])
    return local


def test_a_session_is_kept_by_content_and_options(three: ModelCache, tmp_path: Path) -> None:
    with SessionCache(max_sessions=8) as sessions:
        first = sessions.get(three, "org/m0", "model.onnx")
        assert sessions.get(three, "org/m0", "model.onnx") is first
        assert sessions.get(three, "org/m1", "model.onnx") is not first
        assert sessions.get(three, "org/m2", "model.onnx") is sessions.get(three, "org/again", "model.onnx")
        mine = options("basic")
        choices: list[dict[str, Any]] = [
            {"prepack": True},
            {"align": True},
            {"edges": "derive"},
            {"providers": ["CPUExecutionProvider"]},
            {"session_options": mine},
        ]
        for other in choices:
            made = sessions.get(three, "org/m0", "model.onnx", **other)
            assert made is not first and sessions.get(three, "org/m0", "model.onnx", **other) is made
        stats = sessions.stats()
        assert (stats.sessions, stats.hits, stats.misses, stats.evictions) == (8, 7, 8, 0)
        # The same graph over other weights, under the same name.
        (tmp_path / "0" / "w.bin").write_bytes(bytes(256 * 256 * 4))
        three.import_files("org/m0", [tmp_path / "0"])
        changed = sessions.get(three, "org/m0", "model.onnx")
        assert changed is not first and not changed.run(None, {"x": X})[0].any()
        three.delete_model("org/m0")
        with pytest.raises(NotInStore):
            sessions.get(three, "org/m0", "model.onnx")


def test_the_least_recently_used_session_goes_first_by_count_and_by_bytes(three: ModelCache) -> None:
    size = 256 * 256 * 4
    for limits in ({"max_sessions": 2}, {"max_bytes": 2 * (size + 2048)}):
        with SessionCache(**limits) as sessions:
            first, second = (sessions.get(three, f"org/m{index}", "model.onnx") for index in range(2))
            assert sessions.get(three, "org/m0", "model.onnx") is first
            sessions.get(three, "org/m2", "model.onnx")
            assert len(sessions) == 2 and sessions.stats().evictions == 1
            assert size * 2 < sessions.stats().size_bytes < 2 * (size + 2048)
            assert sessions.get(three, "org/m0", "model.onnx") is first
            assert sessions.get(three, "org/m1", "model.onnx") is not second
            # Who uses one that was let go goes on.
            assert second.run(None, {"x": X})
    with SessionCache(max_bytes=size - 1) as sessions:
        assert sessions.get(three, "org/m0", "model.onnx").run(None, {"x": X})
        assert sessions.stats().sessions == 0


def test_what_a_session_cache_lets_go_of_is_freed(three: ModelCache) -> None:
    sessions = SessionCache(1)
    sessions.get(three, "org/m0", "model.onnx")
    three.delete_model("org/m0")
    assert three.get_stats().doomed_bytes > 0
    sessions.get(three, "org/m1", "model.onnx")
    gc.collect()
    assert three.get_stats().doomed_bytes == 0
    sessions.close()
    three.delete_model("org/m1")
    gc.collect()
    assert three.get_stats().doomed_bytes == 0
    with pytest.raises(ClosedError):
        sessions.get(three, "org/m2", "model.onnx")


def test_threads_that_ask_at_once_get_one_session_and_each_the_error(three: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    import tabagent_model_cache.onnx as module

    make, calls, begin = module._make, [], threading.Barrier(8)

    def counted(*args: Any) -> Any:
        calls.append(args)
        return make(*args)

    monkeypatch.setattr(module, "_make", counted)
    with SessionCache() as sessions:
        got: list[Any] = []

        def ask(path: str) -> None:
            begin.wait()
            try:
                got.append(sessions.get(three, "org/m0", path))
            except FileNotInRepo as error:
                got.append(error)

        def at_once(path: str) -> None:
            got.clear()
            threads = [threading.Thread(target=ask, args=(path,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        at_once("model.onnx")
        assert len(got) == 8 and len(set(map(id, got))) == 1 and len(calls) == 1
        at_once("none.onnx")
        assert len(got) == 8 and all(isinstance(error, FileNotInRepo) for error in got)


def test_a_session_that_could_not_be_made_is_asked_for_again(three: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    import tabagent_model_cache.onnx as module

    make = module._make

    def fail(*args: Any) -> Any:
        raise RuntimeError("not this time")

    with SessionCache() as sessions:
        monkeypatch.setattr(module, "_make", fail)
        with pytest.raises(RuntimeError):
            sessions.get(three, "org/m0", "model.onnx")
        monkeypatch.setattr(module, "_make", make)
        assert sessions.get(three, "org/m0", "model.onnx").run(None, {"x": X})


@pytest.mark.parametrize("limits", [{"max_sessions": 0}, {"max_bytes": -1}])
def test_limits_that_can_not_be_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        SessionCache(**limits)


def test_a_forked_child_is_told_and_takes_nothing_from_its_parent(three: ModelCache) -> None:
    sessions = SessionCache()
    session = sessions.get(three, "org/m0", "model.onnx")
    expected = session.run(None, {"x": X})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sessions.get(three, "org/m0", "model.onnx")
        except ForkedError:
            try:
                onnx_session(three, "org/m0", "model.onnx")
            except ForkedError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    three.delete_model("org/m0")
    assert np.array_equal(session.run(None, {"x": X}), expected)
    sessions.close()
    del session
    assert kept_bytes(three) == 2 * (256 * 256 * 4) + len(WHOLE)
