import pytest
from bench.bounds import BOUNDS, OURS, at_least, at_most, costs_of, faster_than, judge
from bench.figures import Run

MEDIANS = {"w": {OURS: Run(2.0, 3.0, values={"p50_us": 30.0, "chunks": 2.0}), "slow": Run(9.0, 6.0), "slower": Run(20.0, 4.0)}}


def verdict(bound):
    (told,) = judge(MEDIANS, [bound])
    return told


def test_faster_is_the_peers_time_to_ours():
    told = verdict(faster_than("w", "slow", 4.5, "what"))
    assert (told.value, told.reached, told.words()) == (4.5, True, "reached")


def test_of_several_peers_the_best_counts():
    assert verdict(faster_than("w", ("slower", "slow"), 4.5, "what")).value == 4.5


def test_a_cost_is_ours_to_the_peers_and_what_is_missing_is_told():
    told = verdict(costs_of("w", "slower", 0.5, "what", "cpu_seconds"))
    assert (told.value, told.reached, told.words()) == (0.75, False, "missed by 50 %")
    assert (told.value_words(), told.limit_words()) == ("0.75x", "<= 0.5x")


def test_a_limit_may_depend_on_what_was_measured():
    told = verdict(at_most("w", "p50_us", lambda medians: 10 + 8 * medians[OURS].values["chunks"], "what"))
    assert (told.limit, told.reached) == (26.0, False)


@pytest.mark.parametrize("value, reached", [(29.9, False), (30.0, True), (30.1, True)])
def test_the_limit_itself_is_within_it(value, reached):
    assert verdict(at_most("w", "p50_us", value, "what")).reached is reached
    assert verdict(at_least("w", "p50_us", 60 - value, "what")).reached is reached


def test_what_was_not_measured_is_neither_reached_nor_missed():
    for bound in (at_most("w", "seal_ms", lambda medians: medians["nobody"], "what"), faster_than("w", "nobody", 1, "what")):
        told = verdict(bound)
        assert (told.value, told.reached, told.words(), told.value_words()) == (None, None, "not measured", "-")
        assert told.limit_words()


def test_a_workload_that_did_not_run_has_no_verdict():
    assert judge({}, BOUNDS) == []


def test_no_bound_is_told_twice():
    told = [(bound.workload, bound.what) for bound in BOUNDS]
    assert len(told) == len(set(told))
