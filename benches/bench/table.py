"""Tables of figures, for a terminal and for Markdown. Functions of values."""
from __future__ import annotations

import dataclasses

from .bounds import OURS, Verdict
from .figures import Run, duration, iec, ratio, shown
from .workload import Outcome

# Numbers that are the same in every run.
HIDDEN = ("calls", "returned_bytes", "chunks", "files", "kills")


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text. The first `left` columns and the last `words` begin at the left; the others end at the right."""

    head: list[str]
    rows: list[list[str]]
    left: int = 1
    words: int = 1

    def _at_left(self, column: int) -> bool:
        return column < self.left or column >= len(self.head) - self.words

    def lines(self) -> list[str]:
        """For a terminal: columns aligned, two spaces between."""
        rows = [self.head, *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.head))]

        def cell(i: int, text: str) -> str:
            return text.ljust(widths[i]) if self._at_left(i) else text.rjust(widths[i])

        return ["  ".join(cell(i, text) for i, text in enumerate(row)).rstrip() for row in rows]

    def markdown(self) -> list[str]:
        """For a page."""
        rule = ["---" if self._at_left(i) else "--:" for i in range(len(self.head))]
        rows = [[name.lower() for name in self.head], rule, *self.rows]
        return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def figures_of(outcome: Outcome) -> Table:
    """A workload's medians, subject by subject; columns that would be empty are left out."""
    medians = outcome.medians()
    ours = medians.get(OURS)
    columns = {"SUBJECT": [], "TIME": [], "CPU": [], "RSSANON": [], "DISK": [], "RATE": [], "STOLEN": [],
               "TIME TO OURS": [], "CPU TO OURS": [], "BESIDE": []}
    for subject, run in medians.items():
        to_ours = subject != OURS and ours is not None
        rate = ratio(run.bytes, run.seconds)
        cells = {
            "SUBJECT": subject,
            "TIME": duration(run.seconds),
            "CPU": duration(run.cpu_seconds) if run.cpu_seconds is not None else "",
            "RSSANON": iec(run.rss_anon_peak_bytes) if run.rss_anon_peak_bytes else "",
            "DISK": iec(run.disk_bytes) if run.disk_bytes else "",
            "RATE": f"{iec(rate)}/s" if rate and run.bytes >= 1 << 20 else "",
            "STOLEN": duration(run.stolen_seconds) if run.stolen_seconds else "",
            "TIME TO OURS": _times(run.seconds, ours.seconds) if to_ours else "",
            "CPU TO OURS": _times(run.cpu_seconds, ours.cpu_seconds) if to_ours else "",
            "BESIDE": beside(run),
        }
        for name, cell in cells.items():
            columns[name].append(cell)
    kept = {name: cells for name, cells in columns.items() if name == "SUBJECT" or any(cells)}
    return Table(list(kept), [list(row) for row in zip(*kept.values())], words=1 if "BESIDE" in kept else 0)


def _times(theirs: float | None, ours: float | None) -> str:
    told = ratio(theirs, ours)
    return f"{told:.2f}x" if told else ""


def beside(run: Run) -> str:
    """The values of a run that are figures, with their names."""
    told = {name: value for name, value in run.values.items() if name not in HIDDEN and not name.startswith("p50_at_")}
    return ", ".join(f"{name_words(name)} {shown(name, value)}" for name, value in told.items())


def name_words(name: str) -> str:
    """A figure's name without its unit, in words."""
    if name == "seconds":
        return "time"
    for unit in ("_bytes_per_second", "_bytes", "_seconds", "_ms", "_us", "_ns"):
        name = name.removesuffix(unit)
    return {"bytes_per_second": "rate", "bytes_per_cpu_second": "rate by CPU time"}.get(name, name).replace("_", " ")


def verdicts_table(verdicts: list[Verdict]) -> Table:
    """What was to be reached, and what was."""
    rows = [[verdict.bound.workload, verdict.bound.what, verdict.value_words(), verdict.limit_words(), verdict.words()] for verdict in verdicts]
    return Table(["WORKLOAD", "FIGURE", "MEASURED", "TO REACH", "VERDICT"], rows, left=2)


def curve_of(points: list[Outcome]) -> Table:
    """A curve's points: a line for each x, a column for each subject."""
    first = points[0]
    subjects = list(dict.fromkeys(name for point in points for name in point.runs))
    rows = []
    for point in points:
        medians = point.medians()
        told = [shown(first.y, medians[name].get(first.y)) if name in medians else "-" for name in subjects]
        rows.append([at_words(first.x, point.at), *told])
    return Table([first.x.removesuffix(", bytes").upper(), *subjects], rows, words=0)


def at_words(x: str, at: float) -> str:
    """A place on an x axis."""
    return iec(at).replace(".0 ", " ") if x.endswith("bytes") else f"{at:g}"
