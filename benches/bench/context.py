"""What every workload is given: programs, sizes, files to serve, room on the disk."""
from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

from .figures import MIB, iec
from .origin import TOP, Origin, forget, write_random, write_sparse
from .peers import Peers
from .workload import Skip

TINY_BYTES = 8 * MIB


class Bench:
    """One call of `make bench`: `smoke` makes every workload tiny, and takes the programs built for tests; sizes are divided by `shrink`."""

    def __init__(self, room: pathlib.Path, smoke: bool, peers: Peers, shrink: int = 1):
        self.room, self.smoke, self.peers, self.shrink = room, smoke, peers, shrink
        self.target = TOP / os.environ.get("CARGO_TARGET_DIR", "target") / ("debug" if smoke else "release")
        self._origins = 0

    # -- programs

    def build(self) -> None:
        """Builds what is ours."""
        cargo = ["cargo", "build", "--locked", "--quiet", *([] if self.smoke else ["--release"])]
        subprocess.run([*cargo, "-p", "model-cache-cli", "--bins"], check=True, cwd=TOP)
        # Other libraries that compute what ours computes, which tests need not build.
        subprocess.run([*cargo, "-p", "benches", "--bins", *([] if self.smoke else ["--features", "candidates"])], check=True, cwd=TOP)

    def ours(self, store: pathlib.Path, *arguments) -> list:
        """`model-cache` on a store, silent but for what it answers."""
        return [self.target / "model-cache", "--store", store, "--progress", "none", *arguments]

    @property
    def bench_program(self) -> pathlib.Path:
        """The Rust program of benches/."""
        return self.target / "model-cache-bench"

    def told_by_ours(self, *arguments: str) -> str:
        """What `model-cache` prints."""
        return subprocess.run([self.target / "model-cache", *arguments], check=True, capture_output=True, text=True).stdout

    def wheel_python(self) -> pathlib.Path | None:
        """A Python that has the wheel, where there is one: scripts/bench and scripts/test name it."""
        named = os.environ.get("MODEL_CACHE_WHEEL_PYTHON")
        return pathlib.Path(named) if named and pathlib.Path(named).exists() else None

    # -- sizes, files, room

    def size(self, full: int, tiny: int = TINY_BYTES) -> int:
        """Bytes of a workload: as it says, or few."""
        return tiny if self.smoke else full // self.shrink

    def count(self, full: int, tiny: int) -> int:
        """Pieces of a workload: as it says, or few."""
        return tiny if self.smoke else full

    def needs_disk(self, size: int) -> None:
        """Skips a workload for which there is no room. A tenth is left to others."""
        free = shutil.disk_usage(self.room).free
        if free < size * 1.1:
            raise Skip(f"needs {iec(size * 1.1)} of disk, {iec(free)} are free")

    def folder(self, name: str) -> pathlib.Path:
        """A folder of that name, made where missing."""
        folder = self.room / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def random(self, size: int, name: str | None = None, tiny: int = TINY_BYTES, exact: bool = False) -> pathlib.Path:
        """A file of random bytes, made once for all workloads that take one of that size; `exact`: not shrunk."""
        size = size if exact else self.size(size, tiny)
        path = self.room / "files" / (name or str(size))
        if not path.exists():
            self.needs_disk(size)
        return write_random(path, size)

    def sparse(self, size: int) -> pathlib.Path:
        """A file of zeros."""
        size = self.size(size)
        return write_sparse(self.room / "files" / f"sparse-{size}", size)

    @contextlib.contextmanager
    def served(self, files: dict[str, pathlib.Path], **options):
        """An Origin that serves these files, warm, as one repo. A pull of them fits on the disk."""
        self.needs_disk(sum(path.stat().st_size for path in files.values()))
        self._origins += 1
        room = self.room / f"origin-{self._origins}"
        origin = Origin(room, "bench/model", files, **options)
        try:
            origin.warm()
            yield origin
        finally:
            origin.stop()
            forget(room)


def say(text: str) -> None:
    """What is being done, on stderr."""
    print(f"== {text}", file=sys.stderr, flush=True)
