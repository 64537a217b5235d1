"""Draws the series of a soak: `python -m bench.soak SERIES.jsonl` writes an SVG beside it. Meant for the Python that has matplotlib."""
from __future__ import annotations

import json
import pathlib
import sys

from .plot import FuncFormatter, OURS_COLOUR, PEER_COLOURS, plt

MIB = 1 << 20
# Title of each panel, its unit, and the fields drawn in it.
PANELS = [
    ("done", 1, ["operations"]),
    ("kills, power losses, faults of the Hub", 1, ["kills", "losses", "faults_survived"]),
    ("served by the Hub, MiB", MIB, ["served_bytes"]),
    ("private memory of a process, the most in each five seconds, MiB", MIB, ["private_bytes"]),
    ("data file, MiB", MIB, ["data_file_bytes", "data_file_allocated_bytes", "live_bytes"]),
]


def draw(lines: list[dict]):
    """A panel below the other, over minutes."""
    figure, panels = plt.subplots(len(PANELS), figsize=(7, 1.5 * len(PANELS)), sharex=True)
    minutes = [line["seconds"] / 60 for line in lines]
    for axes, (title, unit, fields) in zip(panels, PANELS):
        for field, colour in zip(fields, [OURS_COLOUR, *PEER_COLOURS[1:]]):
            axes.plot(minutes, [line[field] / unit for line in lines], color=colour, linewidth=1.2, label=field.replace("_", " "))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(True, alpha=0.25)
        axes.set_title(title, loc="left", fontsize=9)
        if len(fields) > 1:
            axes.legend(frameon=False, fontsize=7)
    panels[-1].set_xlabel("minutes")
    figure.tight_layout()
    return figure


def main(path: pathlib.Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    draw(lines).savefig(path.with_suffix(".svg"), metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
