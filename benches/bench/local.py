"""Workloads within one process: those of the Rust program `model-cache-bench`, and the same from Python, `python_get_file.py`.

Both say what they have (`list`), and are called alike: a round is one call. Which of their figures must reach what is told in bounds.py,
like all others.
"""
from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys

from . import measure
from .bounds import OURS
from .figures import GIB, Run, iec
from .origin import TOP, forget
from .workload import Prepared, Skip, Subject, Workload

# Bytes for the peers where they do with their data what ours does without: ours reserves, they write.
LESS = {"turnover": GIB}
PYTHON = TOP / "benches/python_get_file.py"


def workloads(bench) -> list[Workload]:
    """What both programs list, and the curve over one of theirs."""
    of_rust = [_of_program(told, lambda _bench: [bench.bench_program]) for told in _listed([bench.bench_program])]
    of_python = [_of_program(told, _python) for told in _listed([sys.executable, PYTHON])]
    return [*of_rust, *of_python, Workload("curve-open", "open of a file as one slice over its chunks", "warm", open_over_chunks, rounds=3,
                                           x="chunks", y="p50_us", points=(1, 2, 5, 10, 20, 41), smoke_points=(1, 2))]


def _listed(program: list) -> list[dict]:
    return json.loads(subprocess.run([*program, "list"], check=True, capture_output=True).stdout)


def _python(bench) -> list:
    python = bench.wheel_python()
    if python is None:
        raise Skip("no Python with the wheel: make wheel")
    return [python, PYTHON]


def _of_program(told: dict, program) -> Workload:
    return Workload(told["name"], told["about"], "cold" if told["needs_root"] else "warm", lambda bench: _rounds(bench, told, program(bench)),
                    root=told["needs_root"])


@contextlib.contextmanager
def _rounds(bench, told: dict, program: list, *options: str):
    if told["needs_root"] and not measure.may_drop_caches():
        raise Skip("needs root, to drop caches: sudo make bench")
    # One folder for all: workloads on the same data share it.
    command = [*program, told["name"], "--dir", bench.folder("local"), *(["--tiny"] if bench.smoke else []), *options]
    each_round = told["prepared"] == "each-round"
    if not bench.smoke:
        # What is brought in, and beside it the same as a plain file.
        bench.needs_disk(2 * bench.size(told["size"]["bytes"]))
        if bench.shrink > 1 and not options and told["size"]["bytes"] > GIB:
            command += ["--bytes", str(bench.size(told["size"]["bytes"]))]

    sums = {}

    def subject(name: str) -> Subject:
        smaller = LESS.get(told["name"]) if name != OURS and not bench.smoke else None
        words = [*command, "--subject", name, *(["--bytes", str(smaller)] if smaller else [])]

        def run(_round: int) -> Run:
            if each_round:
                measure.measure([*words, "--prepare"], bench.peers.env)
            ended = measure.measure(words, bench.peers.env)
            document = json.loads(ended.stdout)
            run = dataclasses.replace(Run.of(document), stolen_seconds=ended.run.stolen_seconds)
            # Everybody has read the same bytes.
            sums[name] = run.values.pop("sum_low_32_bits", None)
            if len(set(sums.values()) - {None}) > 1:
                raise measure.Failed(f"{told['name']}: subjects differ in what they read: {sums}")
            if told["name"] == "many-files":
                run.values |= _listings(bench, document["store"])
            return run

        return Subject(name, run)

    if not each_round:
        measure.measure([*command, "--prepare"], bench.peers.env)
    try:
        notes = [f"The others with {iec(LESS[told['name']])}."] if told["name"] in LESS else []
        yield Prepared([subject(name) for name in told["subjects"]], notes=notes)
    finally:
        if each_round:
            for folder in bench.folder("local").glob(f"{told['name'].split('-')[0]}-*"):
                forget(folder)


def _listings(bench, store: str) -> dict[str, float]:
    """What the whole program takes to list a store, from its start to its end."""
    return {f"{name}_ms": measure.measure(bench.ours(store, name), bench.peers.env).run.seconds * 1000 for name in ("ls", "df")}


def open_over_chunks(bench, chunks: float):
    told = {"name": "open-chunks", "needs_root": False, "prepared": "once", "subjects": [OURS, "plain-mmap"],
            "size": {"bytes": int(chunks) * 100 << 20}}
    return _rounds(bench, told, [bench.bench_program], "--chunks", str(int(chunks)))
