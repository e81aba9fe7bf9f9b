import pytest
from story import axis, figure, heatmap, lines, played, series

from spiritlevel.errors import UsageError
from spiritlevel.report.thin import fitted, thinned

STEPS = list(range(101))
LONG = figure(
    "long",
    "t",
    "c",
    lines(
        "t",
        axis("x"),
        axis("y"),
        series("none", STEPS, STEPS, low=STEPS, high=STEPS),
        series("batch", [1, 2, 3], [1, 2, 3]),
    ),
    heatmap("t", ["one", "two"], [list(range(51))] * 2),
)


def test_every_other_point_stays_and_the_last_one_does_too():
    curves, colours = thinned(LONG, 2)["panels"]
    first, short = curves["series"]
    assert first["x"] == first["y"] == first["low"] == first["high"] == [*range(0, 101, 2)]
    assert short["x"] == [1, 2, 3]
    assert colours["columns"] == [*range(0, 501, 20)]
    assert colours["z"] == [[*range(0, 51, 2)]] * 2
    assert thinned(LONG, 3)["panels"][0]["series"][0]["x"][-2:] == [99, 100]


def test_a_curve_keeps_its_shape_however_little_room_there_is():
    first = thinned(LONG, 1000)["panels"][0]["series"][0]
    assert 8 <= len(first["x"]) <= 16


def test_frames_are_thinned_like_the_panels_and_what_was_not_run_stays_so():
    found = thinned(played(), 2)
    assert found["panels"] == found["frames"][2]
    assert found["frames"][7] is None
    assert len(found["frames"][2][1]["columns"]) == 26


def test_nothing_of_the_figure_itself_changes():
    before = repr(LONG)
    thinned(LONG, 4)
    assert repr(LONG) == before


def test_the_largest_is_thinned_first_and_only_as_far_as_needed():
    small = figure("small", "t", "c", lines("t", axis("x"), axis("y"), series("none", [1], [1])))
    whole = len(repr(LONG)) + len(repr(small))
    written, steps = fitted([LONG, small], repr, whole)
    assert steps == {"long": 1, "small": 1}
    written, steps = fitted([LONG, small], repr, whole - 1)
    assert steps == {"long": 2, "small": 1}
    assert sum(map(len, written.values())) < whole
    assert written["small"] == repr(small)


def test_a_smaller_one_is_left_alone():
    brief = LONG | {"id": "brief", "panels": [LONG["panels"][1]]}
    whole = len(repr(LONG)) + len(repr(brief))
    _, steps = fitted([brief, LONG], repr, whole - 1)
    assert steps == {"brief": 1, "long": 2}


def test_what_cannot_be_made_to_fit_is_told():
    with pytest.raises(UsageError, match=r"wanted at most 0\.0 MB on a page: draw fewer"):
        fitted([LONG], repr, 100)


def test_without_room_for_its_frames_a_figure_is_drawn_at_the_start():
    one = played()
    written, steps = fitted([one], repr, 12_000)
    assert steps == {"play": 0}
    start = {name: value for name, value in one.items() if name not in ("controls", "frames")}
    assert written["play"] == repr(start)
    assert "frames" in one
