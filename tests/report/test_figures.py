import json
import re
from typing import get_args

import plotly.graph_objects as go
import pytest
from story import (
    HOSTILE,
    axis,
    example_story,
    figure,
    guide,
    heatmap,
    lines,
    series,
)

from spiritlevel.report.figures import SHAPES, SYMBOLS, bell, legend, plot
from spiritlevel.report.heatmap import colour_key
from spiritlevel.report.story import Arm

X, Y, LOG_Y = axis("x"), axis("y"), axis("y", log=True)


def drawn(*some, y=Y, guides=()):
    return plot(lines("title", X, y, *some, guides=guides))


def painted(plotted):
    """The figure with a real colour for each token, as page.js makes it."""
    text = re.sub(r'"var\(--[\w-]+\)(@[\d.]+)?"', '"#123456"', json.dumps(plotted))
    return json.loads(text)


def all_panels():
    story = example_story()
    for part in (*story["examples"], *story["claims"]):
        for one in part["figures"]:
            yield from one["panels"]


def test_plotly_knows_every_property_of_every_figure():
    for plotted in (bell(), *map(plot, all_panels())):
        known = painted(plotted)
        go.Figure(
            data=[{"type": "scatter"} | trace for trace in known["data"]], layout=known["layout"]
        )


def test_a_line_has_the_colour_of_its_arm_and_marks_where_points_are_few():
    (few,) = drawn(series("group", [1, 2, 3], [1, 2, 3]))["data"]
    (many,) = drawn(series("group", list(range(50)), [1.0] * 50))["data"]
    assert few["line"]["color"] == many["line"]["color"] == "var(--arm-group)"
    assert (few["mode"], many["mode"]) == ("lines+markers", "lines")
    assert few["marker"]["symbol"] == SYMBOLS["group"]


@pytest.mark.parametrize(("style", "mode"), [("dots", "markers"), ("thin", "lines")])
def test_styles(style, mode):
    (trace,) = drawn(series("none", [1, 2], [1, 2], style))["data"]
    assert trace["mode"] == mode
    assert (trace["opacity"] < 1) == (style == "thin")


def test_a_dashed_line_is_dashed():
    dashed, solid = drawn(series("none", [1], [1], "dash"), series("none", [1], [1]))["data"]
    assert dashed["line"]["dash"] != solid["line"]["dash"] == "solid"


def test_a_band_is_one_closed_outline_a_stretch_and_leaves_the_gap_open():
    band, line = drawn(
        series("batch", [0, 1, 2, 3], [5, 5, None, 5], low=[4, 4, None, 4], high=[6, 7, None, 6])
    )["data"]
    assert band["x"] == [0, 1, 1, 0, None, 3, 3, None]
    assert band["y"] == [4, 4, 7, 6, None, 4, 6, None]
    assert band["fillcolor"].startswith("var(--arm-batch)@0.")
    assert line["y"] == [5, 5, None, 5]
    assert "4" not in line["hovertemplate"].replace(":.4~g", "")


def test_a_band_on_a_logarithmic_axis_stops_where_its_lower_end_is_not_positive():
    band, _ = drawn(
        series("batch", [0, 1, 2], [1, 1, 1], low=[0.5, 0.5, -1], high=[2, 2, 2]), y=LOG_Y
    )["data"]
    assert band["x"] == [0, 1, 1, 0, None]


def test_dots_have_error_bars_in_place_of_a_band():
    (trace,) = drawn(
        series("ghost", [1, 2, 3], [5, 6, None], "dots", low=[4, None, None], high=[7, None, None])
    )["data"]
    assert trace["error_y"]["array"] == [2, None, None]
    assert trace["error_y"]["arrayminus"] == [1, None, None]


def test_a_label_is_text_to_plotly_too():
    (trace,) = drawn(series("none", [1], [1], label=HOSTILE + "%{x}"))["data"]
    name = trace["hovertemplate"].split("<br>")[0]
    assert name == "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;%&#123;x}"


def test_without_a_label_a_series_has_its_arms():
    (trace,) = drawn(series("noisy-none", [1], [1]))["data"]
    assert trace["hovertemplate"].startswith("no normalization, same noise<br>")


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


def test_every_arm_has_its_own_symbol_and_the_legend_can_draw_it():
    assert set(SYMBOLS) == set(get_args(Arm))
    assert len(set(SYMBOLS.values())) == len(SYMBOLS)
    assert {symbol.removesuffix("-open") for symbol in SYMBOLS.values()} == set(SHAPES)


def test_a_guide_is_a_line_through_the_chart_named_where_the_data_are_far():
    rising = series("none", [0, 1, 2, 3], [0.9, 2, 3, 4])
    layout = drawn(rising, guides=[guide("y", 1.0, "even")])["layout"]
    (shape,), (name,) = layout["shapes"], layout["annotations"]
    assert (shape["xref"], shape["y0"], shape["y1"]) == ("paper", 1.0, 1.0)
    assert (str(name["text"]), name["y"], name["xanchor"]) == ("even", 1.0, "right")
    falling = series("none", [0, 1, 2, 3], [4, 3, 2, 0.9])
    (name,) = drawn(falling, guides=[guide("y", 1.0, "even")])["layout"]["annotations"]
    assert name["xanchor"] == "left"


def test_a_guides_name_on_a_logarithmic_axis_is_placed_by_the_exponent():
    (shape,), (name,) = (
        drawn(series("none", [1], [1]), y=LOG_Y, guides=[guide("y", 100, "far")])["layout"][part]
        for part in ("shapes", "annotations")
    )
    assert (shape["y0"], name["y"]) == (100, 2)


def test_a_heatmap_has_its_first_row_on_top_and_logarithms_inside():
    panel = heatmap("t", ["first", "last"], [[0.1] * 51, [10.0] * 50 + [None]])
    plotted = plot(panel)
    (trace,) = plotted["data"]
    assert plotted["layout"]["yaxis"]["autorange"] == "reversed"
    assert trace["z"][0][0] == -1
    assert trace["z"][1][-2:] == [1, None]
    assert trace["text"][1][-2:] == ["10", ""]
    assert (trace["zmin"], trace["zmax"]) == (-1, 1)


def test_a_middle_is_neutral_and_both_sides_reach_equally_far():
    panel = heatmap("t", ["one"], [[0.5] * 50 + [100.0]], middle=1.0)
    (trace,) = plot(panel)["data"]
    assert trace["zmin"] == -trace["zmax"] == -2
    assert trace["colorscale"][4] == [0.5, "#eeeeee"]
    assert [str(number) for number in colour_key(panel)["numbers"]] == ["0.01", "1", "100"]


def test_a_heatmap_of_nothing_still_draws():
    for rows in ([], ["empty"]):
        assert plot(heatmap("t", rows, [[None] * 51 for _ in rows]))["data"]


def test_layers_with_long_names_keep_both_ends_and_many_layers_a_readable_number_of_names():
    names = [f"features.{i}.block.primary_conv.bn" for i in range(100)]
    axis_y = plot(heatmap("t", names, [[1.0] * 51] * 100))["layout"]["yaxis"]
    assert len(axis_y["tickvals"]) <= 24
    assert axis_y["ticktext"][0].startswith("features.0")
    assert axis_y["ticktext"][0].endswith("conv.bn")


def test_the_bell_is_the_standard_normal_density():
    _, curve, marks = bell()["data"]
    area = sum(curve["y"]) * (curve["x"][1] - curve["x"][0])
    assert area == pytest.approx(1, abs=1e-3)
    assert max(curve["y"]) == curve["y"][curve["x"].index(0)]
    assert marks["x"] == []
