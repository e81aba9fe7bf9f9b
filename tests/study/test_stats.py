from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.study.stats import LEVEL, MIN_SEEDS, log_slope, mean_interval, ratio_interval

# Six digits are what measurements here have; closer together, only rounding would be tested.
figures = st.floats(-1e3, 1e3).map(lambda value: round(value, 6))
few = st.lists(figures, min_size=3, max_size=7)
SKEWED = [0.0, 0.1, 0.0, 0.2, 0.1, 0.3, 4.0]


def normal(count: int, seed: int, mean: float = 0.0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, 1.0) for _ in range(count)]


@pytest.mark.parametrize(
    ("values", "t"),
    [
        ([1.0, 2.0, 3.0], 4.303),
        ([1000.1, 1000.2, 1000.3], 4.303),
        ([0.2, -0.1, 0.4, 0.3], 3.182),
        ([0.91, 0.88, 0.93, 0.95, 0.90, 0.89], 2.571),
        ([5.0, 7.0, 1.0, 3.0, 3.0, 8.0, 2.0], 2.447),
    ],
    ids=lambda v: f"n={len(v)}" if isinstance(v, list) else "",
)
def test_students_t_by_a_printed_table(values, t):
    """Two-sided 95 % values of t for n - 1 degrees of freedom, as tables print them."""
    half = t * stdev(values) / len(values) ** 0.5
    found = mean_interval(values)
    assert found.value == pytest.approx(fmean(values))
    assert found.low == pytest.approx(fmean(values) - half, abs=2e-4 * half)
    assert found.high == pytest.approx(fmean(values) + half, abs=2e-4 * half)
    assert found.n == len(values)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [1.0, 2.0],
        [1.0, 1.0],
        [1.0, 2.0, None],
        [None, 1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, math.nan],
        [1.0, 2.0, math.inf, 3.0],
        [*normal(9, seed=0), None],
    ],
    ids=str,
)
def test_no_interval_from_too_few_or_with_one_missing(values):
    assert mean_interval(values) is None
    assert ratio_interval(values) is None


def test_three_are_enough():
    assert MIN_SEEDS == 3
    assert mean_interval([1.0, 2.0, 3.0]).n == 3


@pytest.mark.parametrize("n", [3, 8, 20])
def test_equal_values_have_an_interval_of_no_width(n):
    found = mean_interval([0.1] * n)
    assert found.low == found.value == found.high == pytest.approx(0.1)


@given(few, st.floats(0.1, 10), figures)
def test_the_interval_moves_and_stretches_with_the_values(values, scale, shift):
    found = mean_interval(values)
    moved = mean_interval([scale * value + shift for value in values])
    for name in ("value", "low", "high"):
        expected = scale * getattr(found, name) + shift
        assert getattr(moved, name) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(few)
def test_the_interval_surrounds_the_mean_alike_on_both_sides(values):
    found = mean_interval(values)
    assert found.low <= found.value <= found.high
    width = found.high - found.low
    assert found.high - found.value == pytest.approx(width / 2, rel=1e-6, abs=1e-6)


@given(st.lists(figures, min_size=8, max_size=12))
def test_a_bootstrap_stays_among_the_values(values):
    found = mean_interval(values)
    assert found.n == len(values)
    assert found.value == pytest.approx(fmean(values), abs=1e-9)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_bootstrap_from_eight_on():
    """Skewed values tell: Student's interval has equal sides, the bootstrap's has not."""
    seven, eight = mean_interval(SKEWED), mean_interval([*SKEWED, 0.2])
    assert seven.high - seven.value == pytest.approx(seven.value - seven.low)
    assert eight.high - eight.value > 2 * (eight.value - eight.low)


def test_the_bootstrap_gives_the_same_interval_every_time():
    values = normal(10, seed=1)
    first = mean_interval(values)
    random.seed(5)
    assert mean_interval(values) == first


def test_the_bootstrap_covers_as_often_as_it_says():
    """95 % nominal; of 200 samples of 12 the bootstrap is known to fall a little short."""
    intervals = [mean_interval(normal(12, seed, mean=3.0)) for seed in range(200)]
    share = sum(i.low <= 3 <= i.high for i in intervals) / len(intervals)
    assert LEVEL - 0.07 < share < LEVEL + 0.03


def test_the_bootstrap_agrees_with_the_normal_law_on_many_values():
    values = normal(400, seed=2)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * stdev(values) / len(values) ** 0.5
    found = mean_interval(values)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


def test_values_that_differ_by_rounding_are_equal():
    found = mean_interval([1.0] * 8 + [math.nextafter(1.0, 2.0)])
    assert found.low == pytest.approx(1)
    assert found.high == pytest.approx(1)


def test_ratios_have_their_geometric_mean():
    found = ratio_interval([2.0, 4.0, 8.0])
    half = 4.303 * math.log(2) / 3**0.5
    assert found.value == pytest.approx(4)
    assert found.low == pytest.approx(4 * math.exp(-half), rel=1e-3)
    assert found.high == pytest.approx(4 * math.exp(half), rel=1e-3)


@pytest.mark.parametrize("odd", [0.0, -1.0, math.inf, math.nan, None])
def test_no_interval_where_a_ratio_is_none(odd):
    assert ratio_interval([1.0, 2.0, 3.0, odd]) is None


@given(st.lists(st.floats(0.01, 100).map(lambda v: round(v, 4)), min_size=3, max_size=7))
def test_the_ratio_the_other_way_round_is_the_reciprocal(ratios):
    there, back = ratio_interval(ratios), ratio_interval([1 / ratio for ratio in ratios])
    assert back.value == pytest.approx(1 / there.value)
    assert back.low == pytest.approx(1 / there.high, rel=1e-6)
    assert back.high == pytest.approx(1 / there.low, rel=1e-6)


sizes = st.lists(st.integers(1, 1000), min_size=2, max_size=8, unique=True)


@given(sizes, st.floats(1e-3, 1e3), st.floats(-4, 4))
def test_the_slope_of_a_power_law_is_its_exponent(x, factor, exponent):
    slope = log_slope(x, [factor * value**exponent for value in x])
    assert slope == pytest.approx(exponent, abs=1e-9 + 1e-11 / math.log(max(x) / min(x)) ** 2)


def test_the_slope_is_that_of_least_squares():
    """By hand, of (-1, 0), (0, 1) and (1, 5): covariance 5 over variance 2."""
    x, y = [math.exp(v) for v in (-1, 0, 1)], [math.exp(v) for v in (0, 1, 5)]
    assert log_slope(x, y) == pytest.approx(5 / 2)


def test_the_slope_needs_a_value_for_each_size():
    with pytest.raises(ValueError, match="zip"):
        log_slope([1.0, 2.0, 4.0], [1.0, 2.0])
