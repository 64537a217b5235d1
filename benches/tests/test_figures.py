import statistics

from bench.figures import Run, duration, iec, is_worst, median, ratio, shown
from bench.workload import Outcome


def test_the_median_of_each_figure_is_taken_over_the_runs_that_have_it():
    runs = [Run(3.0, 1.0, values={"p50_us": 5.0}), Run(1.0, None), Run(2.0, 4.0, values={"p50_us": 7.0})]
    told = median(runs)
    assert told.seconds == 2.0
    assert told.cpu_seconds == statistics.median([1.0, 4.0])
    assert told.values == {"p50_us": 6.0}
    assert told.disk_bytes is None


def test_of_worst_cases_the_worst_run_is_told():
    runs = [Run(1.0, rss_anon_peak_bytes=peak, values={"max_us": peak, "reader_longest_wait_ms": peak, "p99_us": peak}) for peak in (1, 9, 3)]
    told = median(runs)
    assert (told.rss_anon_peak_bytes, told.values["max_us"], told.values["reader_longest_wait_ms"]) == (9, 9, 9)
    assert told.values["p99_us"] == 3
    assert not is_worst("seconds")


def test_longest_waits_are_those_of_runs_from_which_the_host_took_no_time():
    waits = [Run(1.0, stolen_seconds=stolen, values={"longest_wait_ms": wait, "p99_us": wait}) for stolen, wait in ((0.0, 3), (0.02, 900), (0.0, 2))]
    told = median(waits)
    assert told.values == {"longest_wait_ms": 3, "p99_us": 3}
    assert told.stolen_seconds == 0.02
    assert median(waits[1:2]).values["longest_wait_ms"] == 900
    assert Outcome("a", "", "", runs={"ours": waits, "quiet": waits[:1]}).disturbed() == [
        "Longest waits of ours are those of 2 of 3 rounds: from the others the machine's host took time."]


def test_a_run_is_read_from_json_with_fields_of_later_programs_left_out():
    run = Run.of({"workload": "x", "subject": "y", "seconds": 1.5, "disk_bytes": None, "values": {"a_ms": 2.0, "b_ms": None}, "store": None})
    assert run == Run(1.5, values={"a_ms": 2.0})
    assert run.get("seconds") == 1.5
    assert run.get("a_ms") == 2.0
    assert run.get("nothing") is None


def test_a_ratio_of_what_is_not_known_is_not_known():
    assert ratio(3, 2) == 1.5
    assert ratio(None, 2) is ratio(3, None) is ratio(3, 0) is None


def test_figures_are_shown_in_units_people_read():
    assert [iec(count) for count in (0, 1023, 1024, 40 << 20, 4 << 30)] == ["0 B", "1023 B", "1.0 KiB", "40.0 MiB", "4.0 GiB"]
    assert [duration(seconds) for seconds in (14.93, 4.523, 0.13, 0.00213, 2.1e-6, 8e-8)] == ["14.9 s", "4.52 s", "130 ms", "2.13 ms", "2.10 us", "80.0 ns"]
    assert shown("seal_ms", 850) == "850 ms"
    assert shown("open_store_us", 19_400) == "19.4 ms"
    assert shown("bytes_per_second", 5 << 30) == "5.0 GiB/s"
    assert shown("file_ratio", 1.1234) == "1.12"
    assert shown("p50_us", None) == "-"
