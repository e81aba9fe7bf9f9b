from story import HOSTILE, axis, control, figure, heatmap, lines, series, text

from spiritlevel.report.summary import chart_name, summary

X, Y = axis("step"), axis("loss")


def test_lines_are_told_from_where_to_where():
    panel = lines("Loss", X, Y, series("none", [0, 5, 10], [2.5, None, 0.12345]))
    one = figure("f", "A figure", "c", panel)
    assert summary(one) == "Loss: no normalization from 2.5 to 0.123, over step from 0 to 10."
    assert chart_name(one, panel) == f"A figure. {summary(one)}"


def test_dots_and_series_of_one_name_are_told_between_what_they_are():
    dots = series("none", [1, 1, 2], [3, -1e-7, 2], "dots", label="seeds")
    bands = [series("none", [1, 2], [n, n], label="band") for n in (1, 5)]
    one = figure("f", "t", "c", lines("L", X, Y, dots, *bands))
    assert summary(one) == "L: seeds from −1e−7 to 3, band between 1 and 5, over step from 1 to 2."


def test_of_many_series_four_are_told():
    many = [series("none", [1, 2], [n, n], label=f"s{n}") for n in range(7)]
    told = summary(figure("f", "t", "c", lines("L", X, Y, *many)))
    assert "s3 from 3 to 3, and 3 more, over step" in told
    assert "s4" not in told


def test_a_map_is_told_by_its_colours_and_its_size():
    one = figure("f", "t", "c", heatmap("M", ["a", "b"], [[0.5] * 51, [None] * 50 + [20]]))
    assert summary(one) == "M: standard deviation from 0.5 to 20, in 2 rows and 51 columns."


def test_nothing_is_told_of_nothing():
    nothing = lines("L", X, Y, series("none", [1], [None]))
    assert summary(figure("f", "t", "c", nothing)) == "L: no values."
    assert summary(figure("f", "t", "c", lines("L", X, Y))) == "L: no values."
    assert summary(figure("f", "t", "c", heatmap("M", [], []))) == "M: no values."


def test_a_given_summary_takes_the_place_of_all_that_and_is_escaped():
    panels = [lines(name, X, Y, series("none", [1], [1])) for name in ("left", "right")]
    one = figure("f", "Both", "c", *panels) | {"summary": text(f"Less, in {HOSTILE}.")}
    assert "&lt;/script&gt;" in summary(one)
    # Where no control changes them, the numbers are told to those who do not see the chart.
    told = "Both. right: no normalization from 1 to 1, over step from 1 to 1."
    assert chart_name(one, panels[1]) == told
    moved = one | {"controls": [control("slider", "lr", ["1", "2"])]}
    assert chart_name(moved, panels[1]).startswith("Both. right. Less, in ")
