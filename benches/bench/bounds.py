"""The one table of what is to be reached: workload, figure, limit; and the judgement over a record. Functions of values."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .figures import MIB, Run, digits, ratio, shown

OURS = "model-cache"
# One workload's medians by subject.
Medians = dict[str, Run]


@dataclasses.dataclass(frozen=True)
class Bound:
    """`measured` of a workload's medians must be at most, or at least, `limit`."""

    workload: str
    what: str
    measured: Callable[[Medians], float | None]
    at_most: bool
    limit: float | Callable[[Medians], float]
    show: Callable[[float], str]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A bound, and what came of it. `value` is None where it was not measured."""

    bound: Bound
    value: float | None
    limit: float | None

    @property
    def reached(self) -> bool | None:
        """Whether the bound holds, or None where it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.bound.at_most else self.value >= self.limit

    def words(self) -> str:
        """reached; or by how much not."""
        if self.reached is None:
            return "not measured"
        if self.reached:
            return "reached"
        if not self.limit:
            return "missed"
        return f"missed by {abs(self.value / self.limit - 1) * 100:.0f} %"

    def limit_words(self) -> str:
        """<= 150 ms"""
        if self.limit is None:
            return "-"
        return f"{'<=' if self.bound.at_most else '>='} {self.bound.show(self.limit)}"

    def value_words(self) -> str:
        """The figure, or a dash."""
        return "-" if self.value is None else self.bound.show(self.value)


# -- how bounds are said ----------------------------------------------------------------------------------------------


def times(value: float) -> str:
    return f"{digits(value)}x"


def _figure(medians: Medians, subject: str, figure: str) -> float | None:
    return medians[subject].get(figure) if subject in medians else None


def faster_than(workload: str, peers: str | tuple[str, ...], at_least: float, what: str, figure: str = "seconds",
                ours: str = OURS) -> Bound:
    """The best peer's figure divided by ours is at least so much."""
    peers = (peers,) if isinstance(peers, str) else peers

    def measured(medians: Medians) -> float | None:
        theirs = [value for value in (_figure(medians, peer, figure) for peer in peers) if value is not None]
        return ratio(min(theirs), _figure(medians, ours, figure)) if theirs else None

    return Bound(workload, what, measured, False, at_least, times)


def costs_of(workload: str, peer: str, at_most: float, what: str, figure: str = "seconds", ours: str = OURS) -> Bound:
    """Our figure divided by the peer's is at most so much."""
    return Bound(workload, what, lambda medians: ratio(_figure(medians, ours, figure), _figure(medians, peer, figure)), True,
                 at_most, times)


def at_most(workload: str, figure: str, limit: float | Callable[[Medians], float], what: str, ours: str = OURS) -> Bound:
    """Our figure, in the unit of its name, is at most so much."""
    return Bound(workload, what, lambda medians: _figure(medians, ours, figure), True, limit, lambda value: shown(figure, value))


def at_least(workload: str, figure: str, limit: float | Callable[[Medians], float], what: str, ours: str = OURS) -> Bound:
    """Our figure, in the unit of its name, is at least so much."""
    return Bound(workload, what, lambda medians: _figure(medians, ours, figure), False, limit, lambda value: shown(figure, value))


# -- the table --------------------------------------------------------------------------------------------------------

BLOCK_BYTES, CONNECTIONS, KILLS = 5 * MIB, 8, 3

BOUNDS = [
    faster_than("pull", "hf download", 4.5, "faster than hf download"),
    faster_than("pull", "curl", 1.25, "faster than curl, which neither verifies nor syncs"),
    costs_of("pull", "curl + openssl dgst", 0.9, "CPU seconds, to curl + one openssl dgst", "cpu_seconds"),
    at_most("pull", "rss_anon_peak_bytes", 40 * MIB, "private memory at 4 GiB"),
    at_most("pull-40", "rss_anon_peak_bytes", 40 * MIB, "private memory at 40 GiB"),
    at_most("pull", "seal_ms", 150, "from the last byte to sealed"),
    at_least("throttled", "share_of_limit", 0.9, "of 20 MB/s x connections"),
    faster_than("small-files", "hf download", 3, "faster than hf download, 50 ms round trip"),
    at_most("rate-cap", "off_by", 0.05, "off the rate asked for"),
    at_most("kill-and-resume", "beyond_max_bytes", KILLS * CONNECTIONS * BLOCK_BYTES, "bytes served beyond the size, killed three times"),
    costs_of("import", "openssl dgst", 1.15, "time, to one openssl dgst -sha256"),
    at_most("disk-after-rm", "disk_bytes", 64 * MIB, "disk use after rm of everything"),
    at_most("open-chunks", "p50_us", lambda medians: 10 + 8 * medians[OURS].values["chunks"], "open as one slice, warm: 10 us + 8 us a chunk"),
    faster_than("slice-seq", "plain-mmap", 0.97, "sequential read of the slice, to plain mmap"),
    faster_than("slice-rand-4k", "plain-mmap", 0.97, "random reads of 4 KiB, to plain mmap"),
    faster_than("slice-rand-1m", "plain-mmap", 0.97, "random reads of 1 MiB, to plain mmap"),
    faster_than("cold-load", "plain-mmap", 1.5, "cold load with prefetch, to plain mmap", ours="model-cache-prefetch"),
    faster_than("cold-load", "plain-pread", 0.9, "cold load with prefetch, to the best parallel read", ours="model-cache-prefetch"),
    at_least("verify", "bytes_per_cpu_second", 10e9, "verify, warm, for each core it takes"),
    at_most("has-file", "p50_us", 3, "has_file"),
    at_most("open-small", "p50_us", 15, "open of a 10 kB file"),
    costs_of("remove", "plain-file", 1.3, "rm of 10 GiB, to unlinking a plain file"),
    at_most("remove-beside", "reader_longest_wait_ms", 20, "longest wait of a reader of other files meanwhile"),
    at_most("remove-beside", "writer_longest_wait_ms", 20, "longest wait of a writer of other files meanwhile"),
    at_most("many-files", "ls_ms", 100, "ls of 1,000 repos, 20,000 files"),
    at_most("many-files", "df_ms", 100, "df of them"),
    at_most("many-files", "open_store_us", 20_000, "open of that store"),
    at_most("turnover", "file_ratio", 1.15, "file length after ten-fold turnover, to peak live bytes"),
    at_most("turnover", "reserve_p99_us", 20_000, "99th of 100 reservations meanwhile"),
    at_most("open-store-cold", "open_store_us", 50_000, "open of a store, cold"),
    at_most("open-store-cold", "open_store_read_bytes", MIB, "bytes read for it"),
    at_most("python-get-file", "p50_us", 20, "Python get_file and memoryview of 10 kB"),
]


def judge(medians_by_workload: dict[str, Medians], bounds: list[Bound] = BOUNDS) -> list[Verdict]:
    """What came of each bound whose workload is known here."""
    verdicts = []
    for bound in bounds:
        medians = medians_by_workload.get(bound.workload)
        if medians is None:
            continue
        value = bound.measured(medians)
        limit = bound.limit
        if callable(limit):
            limit = limit(medians) if value is not None else None
        verdicts.append(Verdict(bound, value, limit))
    return verdicts
