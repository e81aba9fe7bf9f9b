"""Figures with controls: what they begin with, and several networks' as one."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.catalogue import speaking
from spiritlevel.report.check import _check_controls, _check_lengths
from spiritlevel.study.figures.build import (
    arm_of,
    axis,
    by_network,
    choice,
    depth_by_time,
    figure,
    guide,
    label_at,
    lines,
    mean_curve,
    rate_slider,
    series,
    slider,
    thinned,
)


def panel(text):
    """One panel whose title tells it from others."""
    return lines(text, axis("step"), axis("loss", log=True), [series("batch", [1], [2.0])])


def frame(text):
    return [panel(text)]


def told(found):
    """The titles of each frame's panels."""
    return [None if one is None else [p["title"] for p in one] for one in found["frames"]]


def held(found):
    """The page would take it."""
    _check_controls(found)
    return found


def starts(found):
    return [control["start"] for control in found["controls"]]


# ---- one figure ----------------------------------------------------------------------------------


def test_a_figure_without_controls():
    found = figure("claim.name", panel("a"), panel("b"), records=[5, 2, 5], target="0.1")
    assert found == {
        "id": "claim-name",
        "title": "figures.claim.name.title",
        "summary": "figures.claim.name.summary",
        "caption": ["figures.claim.name.caption", {"target": "0.1"}],
        "panels": [panel("a"), panel("b")],
        "records": [2, 5],
    }
    assert figure("claim.name")["caption"] == "figures.claim.name.caption"


def test_a_figure_begins_where_its_controls_stand():
    controls = [choice("norm", ["none", "batch"], 1), slider("lr", ["1", "2", "3"], 2)]
    frames = [frame(str(i)) for i in range(6)]
    found = held(figure("claim.name", controls=controls, frames=frames))
    assert found["panels"] == frame("5")
    assert found["controls"] == controls
    assert found["frames"] == frames


@pytest.mark.parametrize(
    ("given", "begins", "at"),
    [
        ([None, None, "2", None, "4", None], "2", [0, 2]),
        ([None, None, None, None, "4", None], "4", [1, 1]),
        (["0", None, None, None, None, None], "0", [0, 0]),
        (["0", "1", "2", "3", "4", "5"], "5", [1, 2]),
    ],
)
def test_where_that_was_not_run_it_begins_with_the_first_that_was(given, begins, at):
    controls = [choice("norm", ["none", "batch"], 1), slider("lr", ["1", "2", "3"], 2)]
    frames = [None if text is None else frame(text) for text in given]
    found = held(figure("claim.name", controls=controls, frames=frames))
    assert starts(found) == at
    assert found["panels"] == frame(begins)
    assert told(found) == [None if text is None else [text] for text in given]
    assert [control["start"] for control in controls] == [1, 2], "what was given stays"


def test_a_slider_of_rates_begins_in_the_middle():
    assert rate_slider([0.01, 0.1, 1.0]) == {
        "label": "labels.lr",
        "values": ["0.01", "0.1", "1"],
        "start": 1,
        "kind": "slider",
    }
    assert rate_slider([3.0])["start"] == 0


# ---- several networks ----------------------------------------------------------------------------


def rates(name, values, start=0, records=(), **holes):
    """A figure by learning rate, one of whose frames tells its network and its rate."""
    frames = [None if v in holes.get("without", ()) else frame(f"{name} at {v}") for v in values]
    controls = [slider("lr", values, start)]
    return figure("claim.rates", records=records, controls=controls, frames=frames)


def plain(name, records=()):
    return figure("claim.plain", panel(f"{name} 1"), panel(f"{name} 2"), records=records)


def test_of_one_network_the_figures_are_as_they_are():
    drawn = [rates("a", ["0.1"]), plain("a")]
    assert by_network({"small_vgg": drawn}) == drawn
    assert by_network({"small_vgg": []}) == []


def test_a_figure_without_controls_has_the_network_to_choose():
    (found,) = by_network({"small_vgg": [plain("v", [3, 1])], "small_resnet": [plain("r", [7, 3])]})
    assert held(found)["controls"] == [choice("network", ["VGG-like", "residual"])]
    assert told(found) == [["v 1", "v 2"], ["r 1", "r 2"]]
    assert [p["title"] for p in found["panels"]] == ["v 1", "v 2"]
    assert found["records"] == [1, 3, 7]
    first = plain("v", [3, 1])
    assert {name: found[name] for name in ("id", "title", "caption")} == {
        name: first[name] for name in ("id", "title", "caption")
    }


def test_the_same_controls_stay_side_by_side():
    figures = {name: [rates(name, ["0.1", "1"], 1)] for name in ("small_vgg", "small_resnet")}
    (found,) = by_network(figures)
    assert [control["label"] for control in held(found)["controls"]] == [
        "labels.network",
        "labels.lr",
    ]
    assert told(found) == [[f"{name} at {lr}"] for name in figures for lr in ("0.1", "1")]
    assert starts(found) == [0, 1]


def test_each_network_has_its_own_count_of_layers():
    """Beside one of 80 layers, one of six would be a corner of its chart."""

    def deep(layers):
        panels = [
            [lines("t", axis("layer"), axis("loss"), [series("batch", range(1, n + 1), [1.0] * n)])]
            for n in (layers // 2, layers)
        ]
        return figure("claim.deep", controls=[slider("depth", ["1", "2"])], frames=panels)

    (found,) = by_network({"small_vgg": [deep(6)], "ghostnet_050": [deep(80)]})
    axes = [panel["x"] for (panel,) in held(found)["frames"]]
    assert [one["range"] for one in axes] == [[1, 6], [1, 6], [1, 80], [1, 80]]
    assert all(one["own"] for one in axes)
    (same,) = by_network({name: [rates(name, ["0.1"])] for name in ("small_vgg", "small_resnet")})
    assert not any("own" in panel["x"] for (panel,) in same["frames"])


def test_different_values_are_joined_in_the_order_of_numbers():
    """As text, 10 would come before 3, and 0.01 after 1e-3."""
    figures = {
        "small_vgg": [rates("v", ["3", "10"], 1, [0])],
        "small_resnet": [rates("r", ["0.01", "3"], 0, [9])],
        "my.nets:build": [rates("m", ["1e-3", "10", "100"], 0, [4], without=["10"])],
    }
    (found,) = by_network(figures)
    assert held(found)["controls"] == [
        choice("network", ["VGG-like", "residual", "my.nets:build"]),
        slider("lr", ["1e-3", "0.01", "3", "10", "100"], 3),
    ]
    assert told(found) == [
        *(None, None, ["v at 3"], ["v at 10"], None),
        *(None, ["r at 0.01"], ["r at 3"], None, None),
        *(["m at 1e-3"], None, None, None, ["m at 100"]),
    ]
    assert found["panels"] == frame("v at 10")
    assert found["records"] == [0, 4, 9]


def test_two_controls_are_joined_each_for_itself():
    def of(name, norms, steps):
        controls = [choice("norm", norms), slider("step", steps, len(steps) - 1)]
        frames = [frame(f"{name} {norm} {step}") for norm in norms for step in steps]
        return figure("claim.map", controls=controls, frames=frames)

    figures = {
        "small_vgg": [of("v", ["none", "batch"], ["0", "20"])],
        "small_resnet": [of("r", ["batch", "group:8"], ["0", "100", "20"])],
    }
    (found,) = by_network(figures)
    norms, steps = (control["values"] for control in held(found)["controls"][1:])
    assert norms == ["none", "batch", "group:8"]
    assert steps == ["0", "20", "100"]
    wanted = [
        [f"{name} {norm} {step}"] if norm in of_norm and step in of_step else None
        for name, of_norm, of_step in (
            ("v", ["none", "batch"], ["0", "20"]),
            ("r", ["batch", "group:8"], ["0", "100", "20"]),
        )
        for norm in norms
        for step in steps
    ]
    assert told(found) == wanted
    assert found["panels"] == frame("v none 20")


def test_where_the_start_is_missing_it_moves_to_the_first_frame_there_is():
    figures = {
        "small_vgg": [rates("v", ["1", "2"], 0, without=["1"])],
        "small_resnet": [rates("r", ["1", "2"])],
    }
    (found,) = by_network(figures)
    assert starts(held(found)) == [0, 1]
    assert found["panels"] == frame("v at 2")


def test_frames_with_fewer_panels_than_others_are_left_out():
    """While a run goes, one network may lack an arm that another has."""
    short = figure("claim.plain", panel("s"), records=[8])
    figures = {"small_vgg": [short], "small_resnet": [plain("r", [2])]}
    (found,) = by_network(figures)
    assert told(held(found)) == [None, ["r 1", "r 2"]]
    assert starts(found) == [1]
    assert found["records"] == [2, 8]


def test_a_figure_that_some_networks_lack_is_of_the_others():
    figures = {
        "small_vgg": [plain("v")],
        "small_resnet": [rates("r", ["1"]), plain("r")],
        "ghostnet_050": [],
    }
    found = by_network(figures)
    assert [one["id"] for one in found] == ["claim-plain", "claim-rates"]
    assert [one["controls"][0]["values"] for one in found] == [
        ["VGG-like", "residual"],
        ["residual"],
    ]
    assert told(found[1]) == [["r at 1"]]


# ---- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "arm"),
    [
        ("none", "none"),
        ("group:8", "group"),
        ("ghost:16,eps=1e-3", "ghost"),
        ("noisy-batch", "noisy-batch"),
        ("instance", "other"),
        ("frozen", "other"),
    ],
)
def test_the_colour_of_a_norm(norm, arm):
    assert arm_of(norm) == arm


def test_axes_guides_and_series_have_labels_of_the_catalogue():
    assert axis("loss", log=True, range=(0, 1)) == {
        "label": "labels.loss",
        "log": True,
        "range": [0, 1],
    }
    assert axis("step") == {"label": "labels.step", "log": False, "range": None}
    assert guide("y", 0.5, "trained") == {"axis": "y", "at": 0.5, "label": "labels.trained"}
    drawn = series("none", (1, 2), (3.0, None), "dots", "labels.x")
    assert drawn == {
        "arm": "none",
        "label": "labels.x",
        "x": [1, 2],
        "y": [3.0, None],
        "style": "dots",
    }
    both = lines("t", axis("step"), axis("loss"), (drawn,), (guide("x", 1, "target"),))
    assert both["series"] == [drawn]
    assert both["guides"] == [guide("x", 1, "target")]


def test_depth_by_time_has_a_row_for_each_layer():
    by_step = [[1.0, 2.0, 3.0], [4.0, None, 6.0]]
    found = depth_by_time("t", [0, 20], ["1", "2", "3"], by_step, "activation_std", (1e-3, 1e3))
    assert found["z"] == [[1.0, 4.0], [2.0, None], [3.0, 6.0]]
    assert found["rows"] == ["1", "2", "3"]
    assert found["columns"] == [0, 20]
    assert found["colour"] == {
        "label": "labels.activation_std",
        "log": True,
        "range": [1e-3, 1e3],
        "middle": None,
    }
    _check_lengths(found, "here")


def test_the_mean_of_curves_ends_with_the_shortest():
    assert mean_curve([[1.0, 2.0, 3.0], [3.0, 6.0]]) == [2.0, 4.0]
    assert mean_curve([[1.0, None], [3.0, 6.0]]) == [2.0, None]
    assert mean_curve([[1.0, 2.0], [None, 6.0]]) == [None, 4.0]
    assert mean_curve([]) == []


@given(n=st.integers(0, 2000), most=st.integers(1, 300))
def test_thinned_points_lie_evenly(n, most):
    values = [math.sqrt(i) for i in range(n)]
    index, left = thinned(values, most)
    assert left == [values[i] for i in index]
    assert index[:1] == ([0] if n else [])
    assert len(index) < 2 * most + 1
    assert len(index) == n if n <= most else len(index) >= most
    assert len({b - a for a, b in pairwise(index)}) <= 1


@pytest.mark.parametrize(
    "values",
    [
        (["1e−5", "0.1"], ["0.1"]),
        (["5", "10"], ["deep"]),
        (["deep"], ["10", "5", "deep"]),
        (["last"], ["first", "last"]),
        (["first", "last"], ["last"]),
        (["0.1", "none", "full"], ["full"]),
    ],
)
def test_small_rates_and_words_have_an_order(values):
    figures = {
        name: [rates(name, stops)]
        for name, stops in zip(("small_vgg", "small_resnet"), values, strict=True)
    }
    (found,) = by_network(figures)
    stops = found["controls"][1]["values"]
    assert (
        stops
        == {
            "1e−5": ["1e−5", "0.1"],
            "5": ["5", "10", "deep"],
            "first": ["first", "last"],
            "0.1": ["0.1", "none", "full"],
        }[stops[0]]
    )


@pytest.mark.parametrize(
    ("norm", "english", "chinese"),
    [
        ("none", "no normalization", "无归一化"),
        ("noisy-batch", "batch norm with noise added", "批归一化加噪声"),
        ("group:8", "group norm 8", "组归一化 8"),
        ("renorm", "renorm", "renorm"),
    ],
)
def test_a_line_at_a_rate_names_its_norm_as_the_other_legends_do(norm, english, chinese):
    assert label_at(norm, 0.1) == ["labels.at_rate", {"norm": english, "lr": "0.1"}]
    with speaking("zh"):
        assert label_at(norm, 0.1) == ["labels.at_rate", {"norm": chinese, "lr": "0.1"}]
