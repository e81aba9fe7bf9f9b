import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.errors import UsageError
from spiritlevel.report.axes import drawable, hover_text, number_text, placed, scale

LOG = {"label": "page.plain", "log": True}
LINEAR = {"label": "page.plain", "log": False}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-2, "−2"),
        (0.001, "0.001"),
        (10000, "10000"),
        (1e-12, "10<sup>−12</sup>"),
        (1e5, "10<sup>5</sup>"),
        (-2.5e7, "−2.5·10<sup>7</sup>"),
        (9.9999e-4, "10<sup>−3</sup>"),
    ],
)
def test_number_text(value, text):
    assert number_text(value) == text


positive = st.floats(1e-300, 1e300)


@given(low=positive, high=positive)
def test_a_logarithmic_axis_has_between_one_and_nine_ticks_about_its_data(low, high):
    low, high = min(low, high), max(low, high)
    found = scale(LOG, [low, *[high] * 20], at_points=False)
    ticks = found["tickvals"]
    assert 1 <= len(ticks) <= 9
    assert len(found["ticktext"]) == len(ticks)
    assert ticks == sorted(set(ticks))
    # Three figures of an end may lie beyond it by half a percent.
    assert low * 0.99 <= ticks[0]
    assert ticks[-1] <= high * 1.01


def test_far_powers_all_look_alike_and_near_ones_are_plain():
    found = scale(LOG, [1e-12, 1e12], at_points=False)
    assert found["ticktext"][:2] == ["10<sup>−12</sup>", "10<sup>−8</sup>"]
    assert "1" in found["ticktext"]
    assert scale(LOG, [0.01, 1], at_points=False)["ticktext"] == ["0.01", "0.1", "1"]


def test_few_points_have_their_own_ticks_unless_they_crowd():
    rates = [0.01, 0.03, 0.1, 0.3, 0.31, 1.0]
    assert scale(LOG, rates, at_points=True)["tickvals"] == [0.01, 0.03, 0.1, 0.3, 1.0]
    assert "tickvals" not in scale(LINEAR, list(range(100)), at_points=True)


def test_a_range_on_a_logarithmic_axis_is_given_to_plotly_as_exponents():
    found = scale(LOG | {"range": [0.01, 100]}, [1.0], at_points=False)
    assert found["type"] == "log"
    assert found["range"] == [-2, 2]


@pytest.mark.parametrize("values", [[0.0], [-1.0, 2.0]])
def test_zero_has_no_place_on_a_logarithmic_axis(values):
    with pytest.raises(UsageError, match="on a logarithmic axis, wanted numbers above 0"):
        placed(values, log=True, what="guide")
    with pytest.raises(UsageError, match="wanted numbers above 0"):
        scale(LOG | {"range": values}, [1.0], at_points=False)


def test_drawable_keeps_six_figures_and_leaves_gaps_where_a_logarithm_has_none():
    assert drawable([math.pi, None, 0, -1], log=True) == [3.14159, None, None, None]
    assert drawable([math.pi, None, 0, -1], log=False) == [3.14159, None, 0, -1]


def test_no_values_no_ticks():
    assert scale(LOG, [None, None], at_points=True) == {"type": "log"}


def test_plotly_is_given_nothing_to_fill_in():
    assert hover_text("50 %{y}") == "50 %&#123;y}"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.51, 2.64, [1.6, 1.8, 2, 2.2, 2.4, 2.6]),
        (1.53, 4.6, [2, 2.5, 3, 3.5, 4, 4.5]),
        (5.01, 9.9, [6, 7, 8, 9]),
        (0.9, 11, [1, 2, 5, 10]),
        (2, 2, [2]),
    ],
)
def test_a_short_logarithmic_axis_has_ticks_to_read_it_by(low, high, ticks):
    # More points than have ticks of their own.
    values = [low + (high - low) * i / 20 for i in range(21)]
    log = {"label": "labels.loss", "log": True, "range": None}
    assert scale(log, values, at_points=False)["tickvals"] == ticks
