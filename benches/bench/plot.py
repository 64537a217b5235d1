"""Draws a record: `python -m bench.plot RECORD.json` writes SVGs beside it. Meant for the Python that has matplotlib."""
from __future__ import annotations

import pathlib
import sys

import matplotlib

matplotlib.use("svg")
# The same record, the same file; and text as text, which is smaller and can be found.
matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
                            "axes.spines.right": False, "figure.facecolor": "white"})
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: E402

from .bounds import OURS  # noqa: E402
from .figures import shown  # noqa: E402
from .record import Record, heading  # noqa: E402
from .table import at_words  # noqa: E402

OURS_COLOUR, PEER_COLOURS = "#1f6feb", ["#8c959f", "#bf8700", "#8250df", "#1a7f37", "#cf222e", "#57606a"]


def ticks(name: str) -> FuncFormatter:
    """Figures along an axis: 5 s, not 5.00 s."""
    return FuncFormatter(lambda value, _: shown(name, value).replace(".00 ", " ").replace(".0 ", " "))


def main(path: pathlib.Path) -> None:
    record = Record.from_json(path.read_text())
    for outcome in record.workloads():
        if len(outcome.runs) > 1:
            save(bars(outcome), path, outcome.name)
    for name, points in record.curves().items():
        if len(points) > 1:
            save(curve(points), path, name)
    for outcome in record.workloads():
        if levels := fill_levels(outcome):
            save(fill(outcome, levels), path, f"curve-{outcome.name}")


def save(figure, record: pathlib.Path, name: str) -> None:
    # Without a date in it, so that the same record makes the same file.
    figure.savefig(record.with_suffix(f".{name}.svg"), metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def bars(outcome):
    """Time of each subject; ours on top, and the others' as a multiple of it."""
    medians = outcome.medians()
    names = sorted(medians, key=lambda name: (name != OURS, medians[name].seconds))
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.34 * len(names)))
    seconds = [medians[name].seconds for name in names]
    drawn = axes.barh(names, seconds, color=[OURS_COLOUR if name == OURS else PEER_COLOURS[0] for name in names], height=0.7)
    ours = medians[OURS].seconds if OURS in medians else None
    labels = [shown("seconds", value) + (f"  {value / ours:.2f}x" if ours and name != OURS else "") for name, value in zip(names, seconds)]
    axes.bar_label(drawn, labels, padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, max(seconds) * 1.25)
    axes.xaxis.set_major_formatter(ticks("seconds"))
    axes.set_title(heading(outcome), loc="left", fontsize=9, wrap=True)
    return figure


def curve(points):
    """A line for each subject, both axes logarithmic; the band is from the fastest to the slowest run."""
    first = points[0]
    figure, axes = plt.subplots(figsize=(7, 3.6))
    subjects = list(dict.fromkeys(name for point in points for name in point.runs))
    peers = iter(PEER_COLOURS * 3)
    for name in subjects:
        on = [point for point in points if point.runs.get(name) and point.medians()[name].get(first.y) is not None]
        x = [point.at for point in on]
        colour = OURS_COLOUR if name == OURS else next(peers)
        axes.plot(x, [point.medians()[name].get(first.y) for point in on], marker="o", markersize=4, color=colour, label=name,
                  linewidth=2 if name == OURS else 1.2)
        told = [[run.get(first.y) for run in point.runs[name]] for point in on]
        axes.fill_between(x, [min(runs) for runs in told], [max(runs) for runs in told], color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([point.at for point in points], [at_words(first.x, point.at) for point in points])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(ticks(first.y))
    axes.set_xlabel(first.x.removesuffix(", bytes"))
    axes.grid(True, which="major", alpha=0.25)
    axes.legend(frameon=False)
    axes.set_title(heading(first), loc="left", fontsize=9)
    return figure


def fill_levels(outcome):
    """Of values named p50_at_NNN_percent_us: those of each subject by percent."""
    return {name: {int(key.split("_")[2]): value for key, value in sorted(run.values.items()) if key.startswith("p50_at_")}
            for name, run in outcome.medians().items() if any(key.startswith("p50_at_") for key in run.values)}


def fill(outcome, levels):
    """What a reservation takes over how full the store is."""
    figure, axes = plt.subplots(figsize=(7, 3.0))
    peers = iter(PEER_COLOURS * 3)
    for name, line in levels.items():
        axes.plot(list(line), list(line.values()), marker="o", markersize=4, label=name, color=OURS_COLOUR if name == OURS else next(peers))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("filled, %")
    axes.yaxis.set_major_formatter(ticks("p50_us"))
    axes.grid(True, alpha=0.25)
    axes.legend(frameon=False)
    axes.set_title(heading(outcome), loc="left", fontsize=9)
    return figure


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
