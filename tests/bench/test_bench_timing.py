"""Ratios of made-up samples are what they are by hand, and subjects really take turns."""

from __future__ import annotations

import gc
import time

import pytest

from spiritlevel.bench.timing import Subject, best, interleaved, pooled, ratio, summary


def test_a_summary_is_median_and_quartiles():
    found = summary([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.median, found.q1, found.q3, found.n) == (3.0, 2.0, 4.0, 5)


def test_a_ratio_is_of_medians_and_lies_in_its_interval():
    found = ratio([6.0, 6.0, 900.0, 6.0, 6.0], [2.0, 3.0, 4.0, 3.0, 2.5])
    assert found.value == pytest.approx(2.0)
    assert found.low <= 2.0 <= found.high
    assert found.low < found.high


def test_what_slows_both_alike_does_not_widen_the_interval():
    under = [1.0, 5.0, 2.0, 9.0, 1.5, 4.0]
    paired = ratio([3 * one for one in under], under)
    assert (paired.low, paired.high) == pytest.approx((3.0, 3.0))
    unpaired = ratio([3 * one for one in sorted(under, reverse=True)], sorted(under))
    assert unpaired.high > 3.1


def test_pooled_is_the_geometric_mean():
    found = pooled([([8.0] * 4, [2.0] * 4), ([1.0] * 3, [1.0] * 3)])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.n == 2


def test_the_best_has_the_lowest_median():
    samples = {"a": [1.0, 9.0, 9.0], "b": [2.0, 3.0, 4.0], "c": [0.0, 0.0, 0.0]}
    assert best(samples, ["a", "b"]) == samples["b"]


def test_each_runs_once_a_round_in_turns_without_collection():
    ran, collecting, told = [], [], []

    def subject(name):
        def run():
            ran.append(name)
            collecting.append(gc.isenabled())

        return Subject(name, run)

    samples = interleaved([subject("a"), subject("b"), subject("c")], 8, told.append)
    assert {name: len(one) for name, one in samples.items()} == {"a": 8, "b": 8, "c": 8}
    rounds = [ran[i : i + 3] for i in range(len(ran) - 24, len(ran), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1, "the order changes"
    assert not any(collecting[-24:])
    assert gc.isenabled()
    assert told == pytest.approx([n / 8 for n in range(1, 9)])


def test_collection_is_on_again_after_a_subject_raises():
    calls = iter(range(100))

    def run():
        if next(calls) == 5:
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interleaved([Subject("a", run)], 9)
    assert gc.isenabled()


def test_the_time_is_that_of_the_run():
    """A sleep is never shorter than asked; what else the machine does is not judged."""
    samples = interleaved([Subject("a", lambda: time.sleep(0.002))], 3)
    assert min(samples["a"]) >= 0.002
