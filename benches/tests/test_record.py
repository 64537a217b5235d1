import dataclasses
import re

import pytest
from bench.__main__ import chosen
from bench.bounds import OURS
from bench.figures import Run
from bench.record import BEGIN, END, Record, page, readme_part, smoke_words, terminal, with_part
from bench.smoke import Insane, check_run
from bench.table import Table
from bench.workload import Outcome, Workload, turns

MACHINE = {"cpu": "AMD EPYC 9B14 96-Core Processor", "cores": 2, "instructions": "sha_ni", "virtual": True, "memory_bytes": 24 << 30,
           "kernel": "6.18.44", "file_system": "ext4", "disk": "/dev/vda", "read_ahead_kib": 128}
PULL = Outcome("pull", "pull of 4 GiB", "warm", runs={
    OURS: [Run(4.0, 5.0, 40 << 20, 4 << 30, 4 << 30, {"seal_ms": 850.0}), Run(5.0, 5.0, 41 << 20, 4 << 30, 4 << 30, {"seal_ms": 900.0})],
    "hf download": [Run(14.0, 14.0, 111 << 20, 4 << 30, 4 << 30), Run(15.0, 14.0, 111 << 20, 4 << 30, 4 << 30)],
}, missing={"wget2": "no wget2 here"}, notes=["A note."])
CURVE = [Outcome("curve-size", "pull over file size", "warm", at, {OURS: [Run(at / (1 << 30))]}, x="file size, bytes") for at in (1 << 28, 1 << 30)]
SKIPPED = Outcome("small-files", "pull of 200 files", "warm", skipped="needs root")


def record(*outcomes):
    return Record("2026-11-20", "0123456789ab", "make bench", 5, MACHINE, {"curl": "8.0"}, list(outcomes))


WHOLE = record(PULL, SKIPPED, *CURVE)


def test_a_record_is_read_as_it_was_written():
    assert Record.from_json(WHOLE.to_json()) == WHOLE


def test_a_record_of_another_format_is_refused():
    with pytest.raises(ValueError, match="another format"):
        Record.from_json(WHOLE.to_json().replace('"format": 1', '"format": 2'))


def test_a_record_is_named_by_date_and_machine():
    assert WHOLE.name == "2026-11-20-amd-epyc-9b14-2-cores"


def test_the_page_tells_every_figure_bound_curve_and_gap():
    told = page(WHOLE, ["2026-11-20-x.pull.svg"])
    for part in ("| hf download | 14.5 s |", "3.22x", "seal 875 ms", "missed by 28 %", "## curve-size", "| 256 MiB |", "Pull of 4 GiB; warm; median of 2.", "small-files: needs root",
                 "pull, wget2: no wget2 here", "A note.", "![pull](2026-11-20-x.pull.svg)"):
        assert part in told, part
    # Every line of every table has as many cells as its head.
    for table in re.findall(r"(?:^\|.*\|\n)+", told, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_terminal_is_told_the_same_in_aligned_columns():
    told = terminal(WHOLE).splitlines()
    start = next(i for i, line in enumerate(told) if line.startswith("SUBJECT"))
    ends = {line.index(" s ") for line in told[start + 1:start + 3]}
    assert len(ends) == 1
    assert "  small-files: needs root" in told


def test_smoke_tells_who_ran_and_who_did_not_and_no_figures():
    told = smoke_words(WHOLE)
    assert "pull: model-cache, hf download" in told
    assert "small-files: left out: needs root" in told
    assert "without wget2: no wget2 here" in told
    assert " s" not in told.replace(" small", "").replace(" size", "")


def test_the_readme_is_changed_between_its_markers_alone():
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    part = readme_part(WHOLE, ["r.pull.svg", "r.remove.svg"])
    told = with_part(readme, part)
    assert told.startswith(f"before\n{BEGIN}\n") and told.endswith(f"{END}\nafter\n")
    assert "old" not in told and "hf download" in told
    assert "r.pull.svg" in told and "r.remove.svg" not in told
    assert with_part(told, part) == told


def test_a_readme_without_a_record_says_so():
    assert "No record" in readme_part(None, [])


def test_each_round_begins_with_another():
    assert list(turns(["a", "b", "c"], 2)) == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]
    assert list(turns([], 2)) == []


def test_a_name_means_a_workload_or_else_all_that_begin_so():
    known = [Workload(name, name, "warm", None) for name in ("pull", "pull-40", "curve-size", "curve-files", "verify")]

    def names(only):
        return [workload.name for workload in chosen(known, only)]

    assert names("pull") == ["pull"]
    assert names("verify, curve") == ["curve-size", "curve-files", "verify"]
    assert names("") == [workload.name for workload in known]
    with pytest.raises(SystemExit, match="no workload pul"):
        names("pul")


def test_columns_end_where_their_figures_do():
    assert Table(["NAME", "TIME"], [["a", "1 s"], ["long", "100 s"]], words=0).lines() == ["NAME   TIME", "a       1 s", "long  100 s"]


@pytest.mark.parametrize("change", [{"seconds": 0.0}, {"cpu_seconds": -1.0}, {"values": {"p50_us": float("nan")}}, {"values": {"share": float("inf")}}])
def test_smoke_refuses_figures_no_run_can_have(change):
    good = Run(1.0, 1.0, values={"beyond_bytes": -3.0})
    check_run("who", good)
    with pytest.raises(Insane, match="who"):
        check_run("who", dataclasses.replace(good, **change))
