"""The figures of each claim, from made-up records of every cell that is planned for it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from spiritlevel.report.check import _check_controls, _check_lengths, _hold, _panels
from spiritlevel.report.story import Figure
from spiritlevel.study.claims import CLAIMS, networks
from spiritlevel.study.config import PRESETS, Plan
from spiritlevel.study.figures import claim_figures
from spiritlevel.study.records import Record, Records
from spiritlevel.study.run import all_cells

QUICK = replace(PRESETS["quick"], seeds=(1, 2, 3), gap_seeds=(1, 2, 3), lrs=(0.03, 0.1, 0.3))
PLANS: dict[str, Plan] = {
    "quick": QUICK,
    "networks": replace(QUICK, networks=("small_vgg", "small_resnet", "ghostnet_050")),
    "own": replace(QUICK, networks=("my.models:build",)),
}
LAYERS = 4


def curve(s, start, end):
    """From start to end; lost after thirty steps at the largest rate without a norm."""
    steps = s["steps"]
    lost = s["norm"] == "none" and s.get("lr", 0) >= 0.3
    found = [start + (end - start) * i / steps for i in range(30 if lost else steps)]
    return [*found, math.inf] if lost else found


def trained(s):
    loss, accuracy = curve(s, 2.3, 0.3 + s["lr"] / 10), curve(s, 0.1, 0.9)
    lost = loss[-1] == math.inf
    steps = list(range(0, len(loss), s.get("every", 1)))
    return {
        "loss": loss,
        "accuracy": [min(a, 1.0) for a in accuracy],
        "diverged_at": len(loss) - 1 if lost else None,
        "final_loss": None if lost else loss[-1],
        "final_accuracy": 0.0 if lost else 0.9,
        "classes": 10,
        "test_accuracy": 0.5,
        "test_accuracy_batch": 0.5,
        "steps": steps,
        "places": [f"norm{i}" for i in range(LAYERS - 1)],
        "drift": [0.1 * (i + 1) for i in range(LAYERS - 1)],
        "unit": [[-1.0, step / 100, 1.0] for step in steps],
        "layers": [f"layer{i}" for i in range(LAYERS)],
        "activation_std": [[s["lr"] * (i + 1) for i in range(LAYERS)] for _ in steps],
        "weight_gradient": [[step * 1e-20 + 1e-3] * LAYERS for step in steps],
    }


def landscape(s):
    steps = list(range(0, s["steps"], s["every"]))
    names = ("loss_range", "gradient_change", "beta", "weight_norm2", "beta_norm2")
    size = 3.0 if s["norm"] == "none" else 1.0
    shift = {"l2": size, "cosine": 1 / (1 + size), "relative": size / 10}
    return trained(s | {"lr": 0.1}) | {
        "steps": steps,
        "over_time": {name: [size + step for step in steps] for name in names},
        "median": dict.fromkeys(names, size),
        "shift_layers": ["layer1", "layer2"],
        "shift": [shift, shift],
        "shift_median": shift,
    }


def depth(s):
    layers = s.get("depth", 6) + 1
    return {
        "activation_growth": 1.0,
        "gradient_growth": 1.2,
        "layers": [f"layer{i}" for i in range(layers)],
        "activation_std": [10.0**-i for i in range(layers)],
        "input_gradient": [math.nan, *(1.2**-i for i in range(1, layers))],
        "weight_gradient": [1.0] * layers,
        "loss": 2.3,
    }


def noise(s):
    variance = {name: [1 / n for n in s["sizes"]] for name in ("first", "last", "logits")}
    return {"sizes": s["sizes"], "variance": variance, "slope": dict.fromkeys(variance, -1.0)}


def gap(s):
    loss = 0.4 - (s["seed"] / 100 if s["norm"].startswith("ghost") else 0.0)
    return {
        "steps": [0, 10, 20],
        "train_loss": [2.0, 0.5, 0.05],
        "test_loss": [2.1, 0.7, 0.4],
        "test_accuracy": [0.1, 0.8, 0.9],
        "test_loss_at_target": loss,
        "test_accuracy_at_target": 0.9,
        "gap_at_target": loss - s["target"],
    }


def scaling(_):
    return {
        "scales": [0.01, 10.0, 1000.0],
        "layers": ["layer0"],
        "errors": {"0.0": [1e-15] * 3, "1e-05": [1e-3, 1e-9, 1e-12]},
        "errors_without": [0.5] * 3,
        "cosine": 1e-16,
        "cosine_without": 0.1,
    }


def invariance(_):
    falls = [2.3 / (i + 1) for i in range(5)]
    names = ("loss", "loss_same_effective_rate", "loss_same_rate")
    return {
        "scales": [0.1, 10.0],
        "errors": {eps: [1e-9, 1e-12] for eps in ("0.0", "1e-05", "0.001")},
        "errors_without": [0.9, 9.0],
        "errors_float32": [4e-7, 4e-7],
        "cosine": 1e-16,
        "cosine_eps": 2e-5,
        "cosine_without": 0.1,
        "trajectories": dict.fromkeys(names, falls) | {"worst_difference": 1e-15},
        "trajectories_without": {"worst_difference": 16.0},
    }


RESULTS = {
    "train": trained,
    "landscape": landscape,
    "depth": depth,
    "noise": noise,
    "gap": gap,
    "scaling": scaling,
    "invariance": invariance,
}


@cache
def planned(name):
    """Records of a plan, as they are read from the disk."""
    found = []
    for cell in all_cells(PLANS[name]):
        if cell.task in RESULTS:
            result = RESULTS[cell.task](cell.settings)
            line = Record(cell.key, cell.task, cell.settings, result).to_json()
            found.append(Record(**json.loads(line)))
    return found


def drawn(claim, plan, records=None):
    """The figures, each held against what the page takes."""
    records = Records(planned(plan)) if records is None else records
    found = claim_figures(claim, records, PLANS[plan])
    for one in found:
        _hold(one, Figure, one["id"])
        _check_controls(one)
        for where, panel in _panels(one):
            _check_lengths(panel, where)
        assert one["panels"], one["id"]
        assert one["records"], one["id"]
        assert all(0 <= n < len(records) for n in one["records"])
    assert len({one["id"] for one in found}) == len(found)
    return {one["id"]: one for one in found}


FIGURES = {
    "stabilises": {"percentiles", "accuracy"},
    "converges": {"rates", "curves", "landscape"},
    "gradients": {"depth", "layers", "map"},
    "regularises": {"noise", "curves"},
    "decouples": {"scale", "layers"},
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("claim", CLAIMS)
def test_every_claim_has_its_figures(claim, plan):
    found = drawn(claim, plan)
    ghostnet = plan == "quick" and claim in ("stabilises", "converges")
    names = FIGURES[claim] | ({"ghostnet"} if ghostnet else set())
    assert set(found) == {f"{claim}-{name}" for name in names}
    several = len(networks(claim, PLANS[plan])) > 1
    for name, one in found.items():
        of_network = [c for c in one.get("controls", []) if c["label"] == "labels.network"]
        assert bool(of_network) == (several and not name.endswith("ghostnet"))


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_figure_is_made_of_records_of_its_networks(claim):
    records = planned("networks")
    for one in drawn(claim, "networks").values():
        used = {records[n].settings.get("network") for n in one["records"]}
        assert used >= {"small_vgg", "small_resnet", "ghostnet_050"}
    for one in drawn(claim, "quick").values():
        used = {planned("quick")[n].settings.get("network") for n in one["records"]}
        wanted = {"ghostnet_050"} if one["id"].endswith("ghostnet") else set(CLAIMS[claim].NETWORK)
        assert used - {None} <= wanted


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("claim", CLAIMS)
def test_without_records_there_are_no_figures(claim, plan):
    assert drawn(claim, plan, Records()) == {}


def test_the_reader_sets_rate_and_network_of_the_curves():
    found = drawn("converges", "networks")["converges-curves"]
    assert [control["values"] for control in found["controls"]] == [
        ["VGG-like", "residual", "GhostNet 0.5×"],
        ["0.001", "0.002", "0.003", "0.03", "0.1", "0.3"],
    ]
    there = [frame is not None for frame in found["frames"]]
    # Only GhostNet runs at the smallest rates.
    assert there == [*[False] * 3, *[True] * 3] * 2 + [True] * 6
    loss, accuracy = found["panels"]
    assert {s["arm"] for s in loss["series"]} == {"none", "batch", "group"}
    assert [s["arm"] for s in loss["series"]] == [s["arm"] for s in accuracy["series"]]


def test_a_loss_on_its_way_to_infinity_does_not_flatten_the_others():
    records = planned("own")
    lost = [r for r in records if r.task == "train" and r.result["diverged_at"] is not None]
    try:
        for record in lost:
            record.result["loss"] = [2.3 + 5 * i for i in range(30)] + [math.inf]
        frames = drawn("converges", "own", Records(records))["converges-curves"]["frames"]
    finally:
        planned.cache_clear()
    losses = [v for loss, _ in frames for s in loss["series"] for v in s["y"] if v is not None]
    assert max(losses) > 20
    assert {tuple(loss["y"]["range"]) for loss, _ in frames} == {(min(losses), 2 * math.log(10))}


def test_a_run_that_was_lost_has_no_final_loss_and_ends_early():
    found = drawn("converges", "own")
    panel = found["converges-rates"]["panels"][0]
    line, dots = (s for s in panel["series"] if s["arm"] == "none")
    assert line["x"] == [0.03, 0.1, 0.3]
    # Three seeds a rate, which made-up losses do not tell apart.
    assert line["y"][:2] == pytest.approx([dots["y"][dots["x"].index(lr)] for lr in (0.03, 0.1)])
    assert line["y"][2] is None
    assert len(dots["x"]) == len(dots["y"]) == 9
    assert [lr for lr, y in zip(dots["x"], dots["y"], strict=True) if y is None] == [0.3] * 3
    *_, before, last = found["converges-curves"]["frames"]
    for panel in last:
        assert {s["arm"]: s["x"][-1] for s in panel["series"]}["none"] in (30, 31)
    for panel in before:
        assert {s["arm"]: s["x"][-1] for s in panel["series"]}["none"] > 100
        for drawn_line in panel["series"]:
            assert drawn_line["x"][0] == 20, "the first mean of twenty steps"


def test_the_depth_of_each_network_is_shallow_middle_or_deep():
    found = drawn("gradients", "networks")["gradients-depth"]
    assert [control["values"] for control in found["controls"]] == [
        ["VGG-like", "residual", "GhostNet 0.5×"],
        ["shallow", "middle", "deep"],
    ]
    there = [frame is not None for frame in found["frames"]]
    assert there == [True] * 6 + [False, False, True]
    assert [control["start"] for control in found["controls"]] == [0, 2]
    (depth_of_vgg,) = {len(s["x"]) for s in found["panels"][0]["series"]}
    assert depth_of_vgg == 18 + 1
    (shallow,) = {len(s["x"]) for s in found["frames"][0][0]["series"]}
    assert shallow == 6 + 1
    quick = drawn("gradients", "quick")["gradients-depth"]
    assert quick["controls"][1]["values"] == ["5", "10", "20", "40"]


def test_of_a_signal_zero_and_what_left_the_floats_is_not_drawn():
    found = drawn("gradients", "quick")["gradients-depth"]
    activation, gradient = found["panels"]
    for s in activation["series"]:
        assert s["y"][:15] == pytest.approx([10.0**-i for i in range(15)])
        assert set(s["y"][15:]) == {None}
    assert all(s["y"][0] is None for s in gradient["series"] if s["arm"] != "theory")
    theory = next(s["y"] for s in gradient["series"] if s["arm"] == "theory")
    for before, after in pairwise(theory):
        assert before / after == pytest.approx(math.sqrt(math.pi / (math.pi - 1)))
    middle = len(theory) // 2
    measured = next(s["y"] for s in gradient["series"] if s["arm"] == "batch")
    assert theory[middle] == measured[middle]


def test_the_map_has_a_column_a_reading_and_a_row_a_layer():
    found = drawn("gradients", "own")["gradients-map"]
    norm, lr = found["controls"]
    assert norm["values"][norm["start"]] == "batch"
    assert lr["values"] == ["0.03", "0.1", "0.3"]
    activation, gradient = found["panels"]
    assert activation["rows"] == ["1", "2", "3", "4"]
    assert activation["columns"] == list(range(0, QUICK.sweep_steps, QUICK.every))
    assert activation["z"][2] == pytest.approx([0.1 * 3] * len(activation["columns"]))
    assert gradient["colour"]["label"] != activation["colour"]["label"]


def test_pairs_of_the_landscape_lie_against_the_diagonal():
    found = drawn("decouples", "own")["decouples-layers"]["panels"][0]
    *pairs, diagonal = found["series"]
    assert diagonal["x"] == diagonal["y"]
    assert diagonal["arm"] == "theory"
    for s in pairs:
        assert s["x"] == [pytest.approx(0.3)] * 3
        assert s["y"] == [pytest.approx(0.1)] * 3
    assert diagonal["x"][-1] == pytest.approx(0.33)


def test_of_a_single_group_size_the_interval_is_a_bar():
    """A band would have no width there."""
    sizes = {"quick": (3, "line"), "own": (1, "dots")}
    for plan, (count, style) in sizes.items():
        means, _ = drawn("regularises", plan)["regularises-noise"]["panels"][1]["series"]
        assert (len(means["x"]), means["style"]) == (count, style)
        assert len(means["low"]) == len(means["high"]) == count


def test_losses_are_compared_within_one_run_and_not_step_by_step_over_seeds():
    """A mean over seeds at equal steps need not lie on any of their curves."""
    records = planned("own")
    for record in (r for r in records if r.task == "gap"):
        seed = record.settings["seed"]
        record.result["train_loss"] = [1.5, 1.0 / seed, 0.01]
        record.result["test_loss"] = [2.0, 1.0 + seed, 0.4]
    try:
        found = drawn("regularises", "own")["regularises-curves"]
    finally:
        planned.cache_clear()
    for line in found["panels"][0]["series"]:
        assert (line["x"], line["y"]) == ([1.5, 1.0, 0.01], [2.0, 2.0, 0.4])
    assert {records[n].settings["seed"] for n in found["records"]} == {1}


def test_the_difference_has_its_interval():
    found = drawn("regularises", "quick")["regularises-noise"]
    noise_panel, difference = found["panels"]
    means, dots = difference["series"]
    assert means["x"] == [4, 16, 64]
    # Seeds 1, 2, 3: t(2, 97.5 %) is 4.303, the deviation 0.01.
    half = 4.303 * 0.01 / math.sqrt(3)
    assert means["y"] == pytest.approx([-0.02, -0.02, 0.0])
    assert means["low"] == pytest.approx([-0.02 - half, -0.02 - half, 0.0], rel=1e-3)
    assert means["high"] == pytest.approx([-0.02 + half, -0.02 + half, 0.0], rel=1e-3)
    assert len(dots["x"]) == len(dots["y"]) == 9
    theory = noise_panel["series"][-1]
    assert theory["y"] == pytest.approx([1 / n for n in theory["x"]])
