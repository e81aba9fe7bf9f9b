"""The landscape along a training run: what is read, at which steps, and its medians."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CLASSES, tiny

from spiritlevel.probe import along_gradient, covariate_shift
from spiritlevel.study.networks import build
from spiritlevel.study.tasks.common import feed
from spiritlevel.study.tasks.landscape import _middle, evenly, landscape
from spiritlevel.train import train


def settings(**more):
    shape = {"network": "mlp", "norm": "batch", "init": "he", "depth": 10, "width": 8, "size": 8}
    return shape | {"lr": 0.1, "seed": 4, "steps": 21, "every": 5, "batch_size": 16} | more


def read_by_hand(s):
    """Every reading of every layer, on the same run."""
    data = feed(tiny(), s)
    torch.manual_seed(s["seed"])
    model = build(s, data)
    found = []

    def observe(step, x, y):
        etas = [factor * s["lr"] for factor in (0.5, 1, 2, 4)]
        found.append((step, along_gradient(model, x, y, steps=etas)))
        found[-1] += (covariate_shift(model, x, y, lr=s["lr"]),)

    names = ("lr", "seed", "steps", "every", "batch_size")
    curve = train(model, data.train_x, data.train_y, observe=observe, **{n: s[n] for n in names})
    return curve, found


@pytest.mark.parametrize("norm", ["none", "batch", "noisy-batch"])
def test_it_is_what_is_read_by_hand(norm):
    s = settings(norm=norm)
    result = landscape(s, tiny())
    curve, found = read_by_hand(s)
    assert result["loss"] == pytest.approx(curve.loss, rel=1e-5)
    assert result["steps"] == [step for step, *_ in found] == [0, 5, 10, 15, 20]
    assert result["final_loss"] == pytest.approx(sum(curve.loss[1:]) / 20)
    assert result["classes"] == CLASSES
    assert result["diverged_at"] is None
    along = {
        "loss_range": [r.loss_range for _, r, _ in found],
        "gradient_change": [r.gradient_change for _, r, _ in found],
        "beta": [r.beta for _, r, _ in found],
        "weight_norm2": [r.weight_norm2 for _, r, _ in found],
        "beta_norm2": [r.beta * r.weight_norm2 for _, r, _ in found],
    }
    assert result["over_time"] == along
    assert result["median"] == pytest.approx({name: np.median(v) for name, v in along.items()})
    # Of the 10 layers behind the first, eight are read, the last among them.
    names = list(found[0][2])
    assert len(names) == 10
    assert len(result["shift_layers"]) == len(result["shift"]) == 8
    assert result["shift_layers"][-1] == names[-1] == "classifier"
    for name, layer in zip(result["shift_layers"], result["shift"], strict=True):
        for what in ("l2", "cosine", "relative"):
            over_time = [getattr(shifts[name], what) for *_, shifts in found]
            assert layer[what] == pytest.approx(np.median(over_time), rel=1e-9)
    for what in ("l2", "cosine", "relative"):
        values = [layer[what] for layer in result["shift"]]
        assert result["shift_median"][what] == pytest.approx(np.median(values), rel=1e-9)
    assert result["shift_median"]["relative"] > 0


def test_the_same_settings_give_the_same_numbers():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(landscape(settings(norm="noisy-batch", steps=6, depth=2), tiny()))
    assert results[0] == results[1]


def test_reading_does_not_change_the_run():
    s = settings(norm="noisy-batch", depth=2)
    assert (
        landscape(s | {"every": 1}, tiny())["loss"] == landscape(s | {"every": 20}, tiny())["loss"]
    )


def test_a_run_that_leaves_the_floats_has_no_medians():
    result = landscape(settings(norm="none", lr=1e9, depth=2, every=1), tiny())
    assert result["diverged_at"] is not None
    assert result["final_loss"] is None
    assert math.inf in result["over_time"]["beta"]
    assert math.isnan(result["median"]["beta"])


def test_the_median_is_of_what_is_defined():
    assert _middle([3.0, math.nan, 1.0, 2.0, math.nan]) == 2.0
    assert _middle([4.0, 1.0]) == 2.5
    for values in ([], [math.nan], [1.0, math.inf, 2.0], [math.nan, -math.inf]):
        assert math.isnan(_middle(values))


@given(n=st.integers(0, 200), most=st.integers(1, 20))
def test_evenly(n, most):
    names = [str(i) for i in range(n)]
    found = [int(name) for name in evenly(names, most)]
    assert len(found) == min(n, most)
    assert found == sorted(set(found))
    if n:
        assert found[-1] == n - 1
    gaps = {after - before for before, after in pairwise(found)}
    assert not gaps or max(gaps) - min(gaps) <= 1
