"""The record of a call: everything measured, as JSON, and a page made of it. The README's part is made of the newest record too."""
from __future__ import annotations

import dataclasses
import json
import pathlib

from . import machine
from .bounds import judge
from .figures import Run
from .origin import TOP
from .table import Table, at_words, curve_of, figures_of, name_words, verdicts_table
from .workload import Outcome

FOLDER = TOP / "benches/record"
FORMAT = 1


@dataclasses.dataclass
class Record:
    """One call of `make bench`."""

    date: str
    commit: str
    command: str
    rounds: int
    machine: dict
    peers: dict[str, str]
    outcomes: list[Outcome]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.date}-{machine.slug(self.machine)}"

    def to_json(self) -> str:
        """All of it; runs one by one, so that nothing told of them can't be computed again."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Record:
        """What `to_json` wrote."""
        told = json.loads(text)
        if told.pop("format") != FORMAT:
            raise ValueError("a record of another format than this program's")
        outcomes = [Outcome(**{**fields, "runs": {name: [Run.of(run) for run in runs] for name, runs in fields["runs"].items()}})
                    for fields in told.pop("outcomes")]
        return Record(**told, outcomes=outcomes)

    def verdicts(self):
        """What came of the bounds."""
        return judge({outcome.name: outcome.medians() for outcome in self.outcomes if outcome.at is None})

    def workloads(self) -> list[Outcome]:
        """All that are no curves and ran."""
        return [outcome for outcome in self.outcomes if outcome.at is None and not outcome.skipped]

    def curves(self) -> dict[str, list[Outcome]]:
        """The points of each curve."""
        found: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.at is not None and outcome.runs:
                found.setdefault(outcome.name, []).append(outcome)
        return found

    def left_out(self) -> list[str]:
        """What was not measured, and why."""
        told = []
        for outcome in self.outcomes:
            at = "" if outcome.at is None else f" at {outcome.at:g}"
            if outcome.skipped:
                told.append(f"{outcome.name}{at}: {outcome.skipped}")
            told += [f"{outcome.name}{at}, {subject}: {why}" for subject, why in outcome.missing.items()]
        return list(dict.fromkeys(told))


def newest() -> Record | None:
    """The newest record kept in the tree, by its name."""
    found = sorted(FOLDER.glob("*.json"))
    return Record.from_json(found[-1].read_text()) if found else None


def of_name(name: str) -> Record | None:
    """The record kept under this name."""
    path = FOLDER / f"{name}.json"
    return Record.from_json(path.read_text()) if path.exists() else None


def joined(earlier: Record | None, made: Record, order: list[str]) -> Record:
    """`made`, with what only an earlier call of the same day on the same machine measured. Each outcome tells its commit."""
    if earlier is None:
        return made
    anew = {outcome.name for outcome in made.outcomes}
    outcomes = [outcome for outcome in earlier.outcomes if outcome.name not in anew] + made.outcomes
    at = {name: index for index, name in enumerate(order)}
    return dataclasses.replace(made, command=earlier.command if earlier.command == made.command else f"{earlier.command}; {made.command}",
                               rounds=max(earlier.rounds, made.rounds), peers={**earlier.peers, **made.peers},
                               outcomes=sorted(outcomes, key=lambda outcome: at.get(outcome.name, len(at))))


# -- as text ----------------------------------------------------------------------------------------------------------


def heading(outcome: Outcome) -> str:
    """pull of 4 GiB from nginx on loopback; warm; median of 5"""
    runs = max((len(runs) for runs in outcome.runs.values()), default=0)
    return f"{outcome.what}; {outcome.warmth}; " + ("one run" if runs == 1 else f"median of {runs}")


def smoke_words(record: Record) -> str:
    """That everything ran, without figures, which would mean nothing."""
    lines = []
    for outcome in record.outcomes:
        at = "" if outcome.at is None else f" at {at_words(outcome.x, outcome.at)}"
        lines.append(f"  {outcome.name}{at}: {f'left out: {outcome.skipped}' if outcome.skipped else ', '.join(outcome.runs)}")
        lines += [f"  {outcome.name}{at}: without {subject}: {why}" for subject, why in outcome.missing.items()]
    return "\n".join(lines)


def sentence(outcome: Outcome) -> str:
    """The heading, for a page."""
    told = heading(outcome) + (f"; commit {outcome.commit}" if outcome.commit else "")
    return f"{told[0].upper()}{told[1:]}."


def terminal(record: Record) -> str:
    """All of it, for a terminal."""
    lines = [machine.words(record.machine), f"{record.date}, commit {record.commit}; {', '.join(f'{name} {version}' for name, version in record.peers.items())}"]
    for outcome in record.workloads():
        lines += ["", f"{outcome.name}: {heading(outcome)}", *figures_of(outcome).lines(), *outcome.notes]
    for name, points in record.curves().items():
        lines += ["", f"{name}: {heading(points[0])}", *curve_of(points).lines()]
    if verdicts := record.verdicts():
        lines += ["", *verdicts_table(verdicts).lines()]
    if left_out := record.left_out():
        lines += ["", "Not measured:", *(f"  {line}" for line in left_out)]
    return "\n".join(lines)


def page(record: Record, plots: list[str]) -> str:
    """All of it, as Markdown; `plots` are files beside it."""
    lines = [f"# {record.date}: {machine.words(record.machine)}", "",
             f"`{record.command}` at commit {record.commit}, {record.rounds} rounds in turns. Everything below is made of `{record.name}.json` "
             "(benches/README.md says how).", "",
             ", ".join(f"{name} {version}" for name, version in record.peers.items()) + ".", ""]
    if verdicts := record.verdicts():
        lines += ["## To reach", "", *verdicts_table(verdicts).markdown(), ""]
    for plot in plots:
        lines += [f"![{plot.removesuffix('.svg').rsplit('.', 1)[-1]}]({plot})", ""]
    for outcome in record.workloads():
        lines += [f"## {outcome.name}", "", f"{sentence(outcome)}", "", *figures_of(outcome).markdown(), ""]
        lines += [line for note in outcome.notes for line in (note, "")]
    for name, points in record.curves().items():
        lines += [f"## {name}", "", f"{sentence(points[0])} {name_words(points[0].y).capitalize()}.", "", *curve_of(points).markdown(), ""]
    if left_out := record.left_out():
        lines += ["## Not measured", "", *(f"- {line}" for line in left_out), ""]
    return "\n".join(lines)


# -- the README's part ------------------------------------------------------------------------------------------------

BEGIN = "<!-- Written by `make bench-readme` from the newest record in benches/record: change nothing by hand. -->"
END = "<!-- End of what `make bench-readme` writes. -->"
# Bounds that the README tells, by workload; and the plots it shows, where the record has them.
README_WORKLOADS = ("pull", "throttled", "small-files", "import", "open-chunks", "open-small", "slice-seq", "cold-load", "verify", "remove",
                    "many-files", "python-get-file")
README_PLOTS = ("pull", "curve-size", "curve-open")


def readme_part(record: Record | None, plots: list[str]) -> str:
    """What stands between the markers."""
    if record is None:
        return "No record is kept yet: `make bench RECORD=1` makes one."
    verdicts = [verdict for verdict in record.verdicts() if verdict.bound.workload in README_WORKLOADS and verdict.value is not None]
    lines = [f"{machine.words(record.machine)}; {record.date}, commit {record.commit}; medians of {record.rounds} runs in turns with the peers "
             f"([all figures](benches/record/{record.name}.md)).", ""]
    pull = next((outcome for outcome in record.workloads() if outcome.name == "pull"), None)
    if pull:
        lines += [f"{sentence(pull)}", "", *_without(figures_of(pull), "BESIDE").markdown(), ""]
    lines += [*verdicts_table(verdicts).markdown(), ""]
    for plot in plots:
        if plot.removesuffix(".svg").rsplit(".", 1)[-1] in README_PLOTS:
            lines += [f"![{plot.removesuffix('.svg').rsplit('.', 1)[-1]}](benches/record/{plot})", ""]
    return "\n".join(lines).rstrip()


def _without(table: Table, column: str) -> Table:
    if column not in table.head:
        return table
    at = table.head.index(column)
    return Table(table.head[:at] + table.head[at + 1:], [row[:at] + row[at + 1:] for row in table.rows], table.left, words=0)


def with_part(readme: str, part: str) -> str:
    """The README with another text between its markers."""
    before, rest = readme.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


def plots_of(record: Record, folder: pathlib.Path = FOLDER) -> list[str]:
    """The plots of a record that are there."""
    return sorted(path.name for path in folder.glob(f"{record.name}.*.svg"))
