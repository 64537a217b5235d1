"""What one run of a workload costs, and the median of several. Functions of values."""
from __future__ import annotations

import dataclasses
import statistics

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclasses.dataclass
class Run:
    """One run of one subject. `model-cache-bench` prints the same fields as JSON."""

    seconds: float
    cpu_seconds: float | None = None
    rss_anon_peak_bytes: int | None = None
    disk_bytes: int | None = None
    bytes: int | None = None
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    # What the host of a virtual machine took of its processors meanwhile, summed over them; in steps of 10 ms.
    stolen_seconds: float | None = None

    @staticmethod
    def of(fields: dict) -> Run:
        """From JSON; fields that are not ours are left out."""
        known = {field.name for field in dataclasses.fields(Run)}
        run = Run(**{name: value for name, value in fields.items() if name in known})
        run.values = {name: value for name, value in (run.values or {}).items() if value is not None}
        return run

    def get(self, name: str) -> float | None:
        """A figure by its field, or by its name among the values."""
        return getattr(self, name) if hasattr(self, name) else self.values.get(name)


def is_worst(name: str) -> bool:
    """Whether a figure is a worst case, of which the worst of all runs is told and no median."""
    return name in ("rss_anon_peak_bytes", "stolen_seconds") or not {"max", "longest"}.isdisjoint(name.split("_"))


def is_longest_wait(name: str) -> bool:
    """Whether a figure is the longest of many waits."""
    return "longest" in name.split("_")


def undisturbed(runs: list[Run]) -> list[Run]:
    """The runs from which the host of the virtual machine took no time; all, where there is none such.

    Who waits while the host has the processor waits for the host, so of longest waits these runs alone say something. A median stands it.
    """
    return [run for run in runs if not run.stolen_seconds] or runs


def median(runs: list[Run]) -> Run:
    """The median of each figure over the runs that have it; of worst cases the worst, of longest waits that of the `undisturbed`."""

    def over(name: str) -> float | None:
        among = undisturbed(runs) if is_longest_wait(name) else runs
        told = [value for value in (run.get(name) for run in among) if value is not None]
        if not told:
            return None
        return max(told) if is_worst(name) else statistics.median(told)

    fields = [field.name for field in dataclasses.fields(Run) if field.name != "values"]
    names = sorted({name for run in runs for name in run.values})
    return Run(**{name: over(name) for name in fields}, values={name: over(name) for name in names})


def ratio(part: float | None, whole: float | None) -> float | None:
    """part / whole, or None where either is not known or there is nothing to divide by."""
    return part / whole if part is not None and whole else None


# -- how figures look -------------------------------------------------------------------------------------------------


def iec(count: float) -> str:
    """Bytes as people read them: 4.0 GiB."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Three digits or so, in the unit that suits: 4.52 s, 130 ms, 2.1 us, 80 ns."""
    if seconds == 0:
        return "0 s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def digits(number: float) -> str:
    """Three significant digits, and no more zeros than that says: 4.52, 45.2, 452, 4520."""
    if number == 0:
        return "0"
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if abs(number) < 1 else f"{number:.2f}" if abs(number) < 10 else f"{number:.1f}"


UNITS = {"bytes": iec, "s": duration, "seconds": duration, "ms": lambda value: duration(value / 1e3),
         "us": lambda value: duration(value / 1e6), "ns": lambda value: duration(value / 1e9)}


def shown(name: str, value: float | None) -> str:
    """A figure in the unit its name ends with; without one, three digits."""
    if value is None:
        return "-"
    if name.endswith(("bytes_per_second", "bytes_per_cpu_second")):
        return f"{iec(value)}/s"
    if name.startswith("connections"):
        return f"{value:.0f}"
    return UNITS.get(name.rsplit("_", 1)[-1], digits)(value)
