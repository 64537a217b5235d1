"""What `make bench-smoke` asserts of a record: that everything ran and told sane figures. Never how long anything took."""
from __future__ import annotations

import math

from .bounds import BOUNDS, OURS
from .figures import Run
from .record import Record
from .workload import Workload


# Bounds whose figure another branch brings; to be emptied when it is here.
AWAITED = ("from the last byte to sealed",)


class Insane(Exception):
    """A record that no real run can have made."""


def check(record: Record, wanted: list[Workload], plots: list[str], can_plot: bool) -> None:
    """Raises Insane with the first thing that is wrong."""
    by_name = {}
    for outcome in record.outcomes:
        by_name.setdefault(outcome.name, []).append(outcome)
    for workload in wanted:
        for outcome in by_name.get(workload.name) or _wrong(f"{workload.name} left nothing"):
            if outcome.skipped:
                continue
            if OURS not in outcome.runs and not outcome.name.startswith(("crc32c", "digest")):
                _wrong(f"{outcome.name}: ours did not run")
            for subject, runs in outcome.runs.items():
                if not runs:
                    _wrong(f"{outcome.name}: {subject} has no run")
                for run in runs:
                    check_run(f"{outcome.name}, {subject}", run)
            if workload.x and any(run.get(workload.y) is None for run in outcome.runs[OURS]):
                _wrong(f"{outcome.name}: ours has no {workload.y}")
    # A bound whose figure is called otherwise would never be judged.
    for verdict in record.verdicts():
        outcome = by_name[verdict.bound.workload][0]
        if verdict.value is None and verdict.bound.what not in AWAITED and not outcome.skipped and not outcome.missing:
            _wrong(f"{verdict.bound.workload}: nothing to hold \"{verdict.bound.what}\" against")
    unknown = {bound.workload for bound in BOUNDS} - set(by_name)
    if unknown and len(wanted) > 20:
        _wrong(f"bounds of workloads that are not here: {', '.join(sorted(unknown))}")
    if can_plot and not plots:
        _wrong("no plots")
    if Record.from_json(record.to_json()) != record:
        _wrong("the record is not what was written of it")


def check_run(who: str, run: Run) -> None:
    """Figures that any run has: finite, not negative, and time that passed."""
    told = {**run.values, **{name: value for name, value in vars(run).items() if name != "values" and value is not None}}
    for name, value in told.items():
        if not math.isfinite(value):
            _wrong(f"{who}: {name} is {value}")
        if value < 0 and not name.startswith("beyond"):
            _wrong(f"{who}: {name} is {value}")
    if run.seconds <= 0:
        _wrong(f"{who}: no time passed")


def _wrong(what: str):
    raise Insane(what)
