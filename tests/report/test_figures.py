import copy
import json
import re
from typing import get_args

import plotly.graph_objects as go
import pytest
from story import axis, example_story, figure, guide, heatmap, lines, played, series

from spiritlevel.errors import UsageError
from spiritlevel.report.figures import SHAPES, SYMBOLS, bell, drawing, legend
from spiritlevel.report.heatmap import colour_key
from spiritlevel.report.story import Arm

X, Y, LOG_Y = axis("x"), axis("y"), axis("y", log=True)


def opened(pooled):
    """The way back that charts.js takes."""
    whole = []

    def open_one(item):
        if isinstance(item, list):
            return [open_one(one) for one in item]
        if not isinstance(item, dict):
            return item
        if "$" in item:
            return whole[item["$"]]
        return {key: open_one(one) for key, one in item.items()}

    for item in pooled["pool"]:
        whole.append(open_one(item))
    return open_one(pooled["value"])


def drawn(*panels):
    """What panels share, and the only frame of each."""
    found = drawing(figure("f", "t", "c", *panels))
    return found["panels"], opened(found["frames"])[0]


def lined(*some, x=X, y=Y, guides=()):
    (shared,), (frame,) = drawn(lines("title", x, y, *some, guides=guides))
    return shared, frame


def moved(*panels):
    """Shared part and frames of a figure with a slider whose frames have one panel each."""
    found = figure("f", "t", "c", panels[0])
    values = [str(index) for index in range(len(panels))]
    label = ["page.plain", {"text": "x"}]
    found["controls"] = [{"label": label, "values": values, "start": 0, "kind": "slider"}]
    found["frames"] = [[panel] for panel in panels]
    whole = drawing(found)
    return whole["panels"][0], [frame[0] for frame in opened(whole["frames"])]


def all_figures():
    story = example_story()
    for part in (*story["examples"], *story["claims"]):
        yield from part["figures"]


def test_plotly_knows_every_property_of_every_layout():
    for found in (bell(), *(panel for one in all_figures() for panel in drawing(one)["panels"])):
        text = re.sub(r'"var\(--[\w-]+\)(@[\d.]+)?"', '"#123456"', json.dumps(found))
        known = json.loads(text)
        go.Figure(data=known.get("data", [known.get("trace", {})]), layout=known["layout"])


def test_a_series_keeps_its_numbers_and_is_described():
    _, frame = lined(
        series("group", [1, 2, 3], [1.23456789, None, 3.0], low=[1, 2, 3], high=[4] * 3)
    )
    (found,) = frame["series"]
    assert (found["x"], found["y"]) == ([1, 2, 3], [1.235, None, 3])
    assert (found["low"], found["high"]) == ([1, 2, 3], [4, 4, 4])
    assert found["as"]["arm"] == "group"
    assert found["as"]["symbol"] == SYMBOLS["group"]
    assert found["as"]["entry"] == 0


def test_few_points_are_marked_and_many_are_not():
    _, few = lined(series("group", [1, 2, 3], [1, 2, 3]))
    _, many = lined(series("group", list(range(50)), [1.0] * 50))
    _, dots = lined(series("group", list(range(50)), [1.0] * 50, "dots"))
    _, thin = lined(series("group", [1, 2], [1, 2], "thin"))
    marked = [one["series"][0]["as"]["marked"] for one in (few, many, dots, thin)]
    assert marked == [True, False, True, False]


def test_a_label_is_text_to_plotly_too():
    _, frame = lined(series("none", [1], [1], label="</b>%{x}"))
    assert frame["series"][0]["as"]["hover"] == "&lt;/b&gt;%&#123;x}"


def test_without_a_label_a_series_has_its_arms():
    _, frame = lined(series("noisy-none", [1], [1]))
    assert str(frame["series"][0]["as"]["name"]) == "no normalization, same noise"


def test_a_legend_names_each_label_of_an_arm_once_over_all_panels():
    first = lines("a", X, Y, series("none", [1], [1]), series("none", [1], [2], "dots"))
    second = lines("b", X, Y, series("batch", [1], [1], "thin", label="seed 1"))
    entries = legend(figure("f", "t", "c", first, second, heatmap("h", ["l"], [[None] * 51])))
    assert [(str(e["label"]), e["arm"], e["style"]) for e in entries] == [
        ("no normalization", "none", "line"),
        ("seed 1", "batch", "thin"),
    ]
    assert entries[0]["shape"] == SHAPES["circle"]
    assert entries[1]["shape"] is None


def test_a_legend_has_what_any_frame_has_and_shows_the_first_ones():
    one = played()
    one["controls"][1]["start"] = 0
    one["panels"] = one["frames"][0]
    assert [(str(e["label"]), e["shown"]) for e in legend(one)] == [
        ("no normalization", True),
        ("batch, rate 0.1", False),
    ]
    frame = opened(drawing(one)["frames"])[1]
    assert [series["as"]["entry"] for series in frame[0]["series"]] == [0, 1]


def test_every_arm_has_its_own_symbol_and_the_legend_can_draw_it():
    assert set(SYMBOLS) == set(get_args(Arm))
    assert len(set(SYMBOLS.values())) == len(SYMBOLS)
    assert {symbol.removesuffix("-open") for symbol in SYMBOLS.values()} == set(SHAPES)


def test_a_guide_is_a_line_through_the_chart_named_where_the_data_are_far():
    _, frame = lined(series("none", [0, 1, 2, 3], [0.9, 2, 3, 4]), guides=[guide("y", 1.0, "even")])
    (shape,), (name,) = frame["shapes"], frame["annotations"]
    assert (shape["xref"], shape["y0"], shape["y1"]) == ("paper", 1.0, 1.0)
    assert (str(name["text"]), name["y"], name["xanchor"]) == ("even", 1.0, "right")
    falling = series("none", [0, 1, 2, 3], [4, 3, 2, 0.9])
    _, frame = lined(falling, guides=[guide("y", 1.0, "even")])
    assert frame["annotations"][0]["xanchor"] == "left"


def test_a_guides_name_on_a_logarithmic_axis_is_placed_by_the_exponent():
    _, frame = lined(series("none", [1], [1]), y=LOG_Y, guides=[guide("y", 100, "far")])
    assert (frame["shapes"][0]["y0"], frame["annotations"][0]["y"]) == (100, 2)


def test_one_frame_leaves_its_range_to_plotly_and_several_have_one_in_common():
    low = lines("a", X, Y, series("none", list(range(20)), [1.0] * 20))
    high = lines(
        "b", X, Y, series("none", list(range(20)), [3.0] * 20, low=[2.0] * 20, high=[5.0] * 20)
    )
    shared, _ = moved(low)
    assert "range" not in shared["layout"]["yaxis"]
    shared, frames = moved(low, high)
    assert shared["layout"]["xaxis"]["range"] == [0, 19]
    assert shared["layout"]["yaxis"]["range"] == [0.8, 5.2]
    assert [str(frame["words"]["title"]) for frame in frames] == ["a", "b"]


def test_ranges_in_common_are_exponents_on_a_logarithmic_axis_and_skip_what_it_cannot_show():
    one = lines("a", X, LOG_Y, series("none", list(range(20)), [0.0] * 19 + [1.0]))
    other = lines("b", X, LOG_Y, series("none", list(range(20)), [100.0] * 20))
    shared, frames = moved(one, other)
    assert shared["layout"]["yaxis"]["range"] == [-0.1, 2.1]
    # The table has the zeros.
    assert frames[0]["series"][0]["y"][0] == 0


def test_ranges_that_are_given_are_joined():
    one = lines("a", X, axis("y", limits=[0, 1]), series("none", [1], [0.5]))
    other = lines("b", X, axis("y", limits=[-1, 0.5]), series("none", [1], [0.2]))
    shared, _ = moved(one, other)
    assert shared["layout"]["yaxis"]["range"] == [-1, 1]


def test_an_axis_of_a_frames_own_reaches_as_far_as_it_says():
    own = {"range": [1, 7], "own": True}
    one = lines("a", X | own, Y, series("none", [1, 7], [1, 2]))
    other = lines("b", X | {"range": [1, 100], "own": True}, Y, series("none", [1, 100], [1, 2]))
    _, frames = moved(one, other)
    assert [frame["x"]["range"] for frame in frames] == [[0.7, 7.3], [-3.95, 104.95]]
    _, (plain, _) = moved(one | {"x": X}, other | {"x": X})
    assert plain["x"] == {}


def test_a_guide_of_any_frame_is_within_the_common_range():
    one = lines("a", X, Y, series("none", [1, 2], [1, 2]))
    other = lines("b", X, Y, series("none", [1, 2], [1, 2]), guides=[guide("y", 9, "up")])
    shared, frames = moved(one, other)
    assert shared["layout"]["yaxis"]["range"][1] > 9
    assert [len(frame["shapes"]) for frame in frames] == [0, 1]


def test_repeated_x_and_descriptions_are_written_once():
    steps = [float(step) for step in range(100, 200)]
    frames = [
        lines("t", X, Y, series("batch", steps, [k + step / 7 for step in steps])) for k in range(9)
    ]
    found = drawing(figure("f", "t", "c", *frames))
    text = json.dumps(found["frames"])
    assert text.count("100, 101, 102") == 1
    assert text.count('"arm"') == 1


def test_a_heatmap_has_its_first_row_on_top_and_its_colours_by_the_logarithm():
    shared, frame = drawn(heatmap("t", ["first", "last"], [[0.1] * 51, [10.0] * 50 + [None]]))
    (shared,), (frame,) = shared, frame
    assert shared["layout"]["yaxis"]["autorange"] == "reversed"
    assert (shared["trace"]["zmin"], shared["trace"]["zmax"], shared["log"]) == (-1, 1, True)
    assert frame["z"][0][0] == 0.1
    assert frame["z"][1][-2:] == [10, None]
    assert frame["rows"] == ["first", "last"]


def test_maps_have_colours_height_and_columns_in_common():
    small = heatmap("t", ["one"], [[0.1] * 51])
    large = heatmap("t", [str(row) for row in range(20)], [[10.0] * 51] * 20)
    later = copy.deepcopy(large) | {"columns": [10 * step + 500 for step in range(51)]}
    shared, frames = moved(small, large)
    assert (shared["trace"]["zmin"], shared["trace"]["zmax"]) == (-1, 1)
    assert shared["layout"]["height"] == drawn(large)[0][0]["layout"]["height"]
    assert "range" not in shared["layout"]["xaxis"]
    assert [len(frame["ticks"]["tickvals"]) for frame in frames] == [1, 20]
    shared, _ = moved(small, later)
    assert shared["layout"]["xaxis"]["range"] == [-5, 1005]


def test_a_middle_is_neutral_and_both_sides_reach_equally_far():
    panel = heatmap("t", ["one"], [[0.5] * 50 + [100.0]], middle=1.0)
    (shared,), _ = drawn(panel)
    assert shared["trace"]["zmin"] == -shared["trace"]["zmax"] == -2
    assert shared["trace"]["colorscale"][4] == [0.5, "#eeeeee"]
    assert [str(number) for number in colour_key([panel])["numbers"]] == ["0.01", "1", "100"]


def test_a_heatmap_of_nothing_still_draws():
    for rows in ([], ["empty"]):
        (shared,), (frame,) = drawn(heatmap("t", rows, [[None] * 51 for _ in rows]))
        assert shared["trace"]["zmin"] == shared["trace"]["zmax"]
        assert frame["rows"] == rows


def test_a_colour_range_needs_numbers_that_a_logarithm_can_show():
    with pytest.raises(UsageError, match="got a colour range of"):
        drawn(heatmap("t", ["one"], [[1.0] * 51], range=[0.0, 1.0]))


def test_layers_with_long_names_keep_both_ends_and_many_layers_a_readable_number_of_names():
    names = [f"features.{i}.block.primary_conv.bn" for i in range(100)]
    _, (frame,) = drawn(heatmap("t", names, [[1.0] * 51] * 100))
    assert len(frame["ticks"]["tickvals"]) <= 24
    assert frame["ticks"]["ticktext"][0].startswith("features.0")
    assert frame["ticks"]["ticktext"][0].endswith("conv.bn")


def test_the_bell_is_the_standard_normal_density():
    _, curve, marks = bell()["data"]
    area = sum(curve["y"]) * (curve["x"][1] - curve["x"][0])
    assert area == pytest.approx(1, abs=1e-3)
    assert max(curve["y"]) == curve["y"][curve["x"].index(0)]
    assert marks["x"] == []
