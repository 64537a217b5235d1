"""What a workload is: subjects that do the same thing, run in turns. And what it leaves: their runs, and what was left out and why."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from .figures import Run, is_longest_wait, median, undisturbed


class Skip(Exception):
    """Why a workload can't be run on this machine, or a subject is not here."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """Who does it. `run(round)` does it once, and tidies up before it returns."""

    name: str
    run: Callable[[int], Run]


@dataclasses.dataclass
class Prepared:
    """A workload made ready: who takes part, who can't and why, and what a reader of the figures should know."""

    subjects: list[Subject]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Workload:
    """`prepare(bench)` makes the data, gives the subjects, and takes the data away again."""

    name: str
    what: str
    warmth: str
    prepare: Callable[..., AbstractContextManager[Prepared]]
    rounds: int | None = None  # at most so many, where one is enough
    root: bool = False
    # Of a curve: what its x is, in words and unit, and the figure that is drawn; subjects are made anew for each x.
    x: str | None = None
    y: str = "seconds"
    points: tuple[float, ...] = ()
    smoke_points: tuple[float, ...] = ()


@dataclasses.dataclass
class Outcome:
    """What came of a workload: runs by subject, or why there are none. A curve has one for each point."""

    name: str
    what: str
    warmth: str
    at: float | None = None
    runs: dict[str, list[Run]] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    skipped: str | None = None
    x: str | None = None
    y: str = "seconds"
    commit: str | None = None  # of ours; of the record's others where it was measured in another call

    def medians(self) -> dict[str, Run]:
        """The median of each subject that ran."""
        return {subject: median(runs) for subject, runs in self.runs.items() if runs}

    def disturbed(self) -> list[str]:
        """Whose longest waits are those of less than all runs, because the host of the machine took time from the others."""
        waits = [(name, runs) for name, runs in self.runs.items() if any(is_longest_wait(value) for run in runs for value in run.values)]
        return [f"Longest waits of {name} are those of {len(undisturbed(runs))} of {len(runs)} rounds: from the others the machine's host took time."
                for name, runs in waits if len(undisturbed(runs)) < len(runs)]


def turns(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Each name once a round; each round another begins, so that nobody always meets the machine as the same one left it."""
    for round in range(rounds):
        first = round % len(names) if names else 0
        for name in names[first:] + names[:first]:
            yield round, name
