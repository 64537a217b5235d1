"""A Hub on loopback, what it serves, and stores to pull into.

The Hub is the program `hub-fixture` of this tree: MODEL_CACHE_HUB_FIXTURE names it, else it is looked for in target/debug.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tabagent_model_cache import ModelCache

MIB = 1 << 20
REPO = "org/model"
BIG = "model.safetensors"
BIG_BYTES = 11 * MIB


def fixture_program() -> Path:
    named = os.environ.get("MODEL_CACHE_HUB_FIXTURE")
    target = os.environ.get("CARGO_TARGET_DIR") or Path(__file__).parents[3] / "target"
    return Path(named) if named else Path(target, "debug", "hub-fixture")


class Hub:
    """A Hub at work, and the folder it serves."""

    def __init__(self, root: Path, *options: str) -> None:
        said = root.parent / f"endpoint-{time.monotonic_ns()}"
        command = [fixture_program(), "--root", root, "--print-endpoint", said, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(3000):
            if said.exists():
                break
            assert self.process.poll() is None, "the hub-fixture ended"
            time.sleep(0.01)
        self.root = root
        self.endpoint = said.read_text().strip()

    def content(self, path: str, repo: str = REPO) -> bytes:
        return (self.root / repo / path).read_bytes()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A safetensors file, written by hand: the header's length, the header, the data."""
    header: dict[str, object] = {}
    data = b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of repos: one with safetensors and configs, one with two GGUF quants."""
    root = tmp_path_factory.mktemp("hub") / "repos"
    noise = random.Random(7)
    model = root / REPO
    (model / "sub").mkdir(parents=True)
    weights = noise.randbytes(BIG_BYTES - 4096)
    bias = struct.pack("<3f", 1, 2, 3)
    (model / BIG).write_bytes(safetensors({"weight": ("U8", [len(weights)], weights), "bias": ("F32", [3], bias)}))
    (model / "config.json").write_text('{"model_type": "bert"}\n')
    (model / "sub" / "empty.txt").write_bytes(b"")
    gguf = root / "org" / "model-GGUF"
    gguf.mkdir()
    (gguf / "model-Q4_K_M.gguf").write_bytes(noise.randbytes(3 * MIB))
    (gguf / "model-Q8_0.gguf").write_bytes(noise.randbytes(200_000))
    (gguf / "config.json").write_text("{}\n")
    gated = root / "org" / "gated"
    gated.mkdir()
    (gated / "config.json").write_text("{}\n")
    (gated / "model.safetensors").write_bytes(noise.randbytes(100_000))
    (gated / ".hf.json").write_text('{"gated": "manual"}')
    return root


@pytest.fixture(scope="session")
def hub(served: Path) -> Iterator[Hub]:
    hub = Hub(served)
    yield hub
    hub.stop()


@pytest.fixture
def slow_hub(served: Path) -> Iterator[Hub]:
    """A Hub that would need a quarter of a minute for the big file: nobody waits for the end of that."""
    hub = Hub(served, "--slow", "100000")
    yield hub
    hub.stop()


@pytest.fixture
def open_cache(tmp_path: Path) -> Iterator[Callable[..., ModelCache]]:
    """Opens the test's store; what it opened is closed after the test."""
    opened: list[ModelCache] = []

    def open_it(hub: Hub | None = None, store: str = "store", **options: object) -> ModelCache:
        if hub is not None:
            options["endpoint"] = hub.endpoint
        cache = ModelCache(tmp_path / store, **options)  # type: ignore[arg-type]
        opened.append(cache)
        return cache

    yield open_it
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache: Callable[..., ModelCache], hub: Hub) -> ModelCache:
    return open_cache(hub)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("HF_") or name in ("TRANSFORMERS_OFFLINE", "MODEL_CACHE_HOME", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name)
