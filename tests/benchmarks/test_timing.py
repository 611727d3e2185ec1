import gc
import time

import numpy as np
import pytest

from edgepose.benchmarks.timing import LEAST_ROUNDS, fresh_process, interleaved, ratio, summarize
from edgepose.errors import InputError


def test_summary_of_known_times():
    times = np.arange(1.0, 101.0)
    summary = summarize(times)
    assert summary["p50"] == 50.5
    assert summary["min"] == 1
    assert summary["mean"] == 50.5
    assert summary["runs"] == 100
    assert summary["p95"] == pytest.approx(95.05)
    assert summary["p99"] == pytest.approx(99.01)
    assert summary["low"] < 50.5 < summary["high"]


def test_interval_of_the_median_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        summary = summarize(rng.exponential(1.0, 60))
        covered += summary["low"] <= np.log(2) <= summary["high"]
    assert 180 <= covered <= 199  # 95 % of 200 is 190, its standard deviation 3; seen: 188


def test_rounds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    alike = rng.normal(10, 0.1, (15, 20))
    apart = alike + rng.normal(0, 1, (15, 1))
    width = [np.ptp([summarize(times)[key] for key in ("low", "high")]) for times in (alike, apart)]
    assert width[1] > 3 * width[0]


@pytest.mark.parametrize("times", [[], [[]], [1.0, np.nan], [np.inf]])
def test_no_times_or_broken_ones_are_refused(times):
    with pytest.raises(InputError, match="finite and at least one"):
        summarize(times)


def test_calls_take_turns_in_every_round_and_the_first_of_a_turn_does_not_count():
    calls, turns = [], []
    ways = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = interleaved(ways, rounds=6, burst=2, progress=turns.append)
    assert {name: value.shape for name, value in times.items()} == {name: (6, 2) for name in "abc"}
    assert turns == list(range(1, 19))
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]  # the warm-up
    rounds = np.array(calls[6:]).reshape(6, 3, 3)
    for turn in rounds:
        assert all(len(set(burst)) == 1 for burst in turn)
        assert sorted(turn[:, 0]) == ["a", "b", "c"]
    assert len({tuple(turn[:, 0]) for turn in rounds}) > 1  # not always the same order


def test_times_are_of_the_call_alone():
    first_of_turn = {"next": True}

    def slow_at_first():
        if first_of_turn["next"]:
            time.sleep(0.05)
        first_of_turn["next"] = False

    def other():
        first_of_turn["next"] = True

    times = interleaved({"slow at first": slow_at_first, "other": other}, rounds=5, burst=3)
    assert np.median(times["slow at first"]) < 5  # ms: the 50 ms are in the run that is thrown away


def test_garbage_collection_rests_and_comes_back():
    seen = []
    interleaved({"a": lambda: seen.append(gc.isenabled())}, rounds=2, burst=1)
    assert seen[2:] == [False] * 4
    assert gc.isenabled()


def test_a_failing_call_is_not_swallowed_and_the_collector_comes_back():
    def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        interleaved({"a": fail})
    assert gc.isenabled()


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"burst": 0}])
def test_rounds_and_burst_must_be_positive(wrong):
    with pytest.raises(InputError, match="at least 1"):
        interleaved({"a": int}, **wrong)


def test_ratio_leaves_out_what_slows_a_whole_round():
    rng = np.random.default_rng(0)
    slow_moments = rng.uniform(1, 5, (15, 1))  # of the machine
    ours = 10 * slow_moments * rng.normal(1, 0.01, (15, 3))
    theirs = 20 * slow_moments * rng.normal(1, 0.01, (15, 3))
    found = ratio(ours, theirs)
    assert found["value"] == pytest.approx(2, abs=0.02)  # 1 % noise on each; seen: 1.998
    assert found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] < 0.05
    assert ratio(theirs, ours)["value"] == pytest.approx(0.5, abs=0.01)


def test_ratio_of_different_rounds_is_refused():
    with pytest.raises(InputError, match="same rounds, got 3 and 4"):
        ratio(np.ones((3, 2)), np.ones((4, 2)))


def test_few_rounds_have_no_interval():
    times = np.random.default_rng(0).normal(10, 1, (LEAST_ROUNDS, 40))
    assert {"low", "high"} <= set(summarize(times))
    assert {"low", "high"} <= set(ratio(times, 2 * times))
    few = times[:-1]  # many runs, but of few rounds
    assert set(summarize(few)) == {"p50", "p95", "p99", "min", "mean", "runs"}
    assert ratio(few, 2 * few) == {"value": pytest.approx(2)}


def test_fresh_process_is_one_each_time():
    code = "import json, os, sys; print('noise'); print(json.dumps([os.getpid(), float(sys.argv[1]), sys.argv[2]]))"
    found = fresh_process(code, runs=2, arguments=("word",))
    assert found[0][0] != found[1][0]
    assert found[0][1] < found[1][1] <= time.time()
    assert found[0][2] == "word"


def test_a_process_that_fails_is_told_with_its_words():
    with pytest.raises(InputError, match=r"(?s)ended with 1: .*ZeroDivisionError"):
        fresh_process("1 / 0", runs=1)
    with pytest.raises(InputError, match="no output"):
        fresh_process("", runs=1)
    with pytest.raises(InputError, match="longer than"):
        fresh_process("import time; time.sleep(60)", runs=1, timeout=0.2)
