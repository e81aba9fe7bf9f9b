"""One training run as the study reads it, against a run read by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tiny import CLASSES, tiny
from torch.nn import functional as F

from spiritlevel.study.networks import build
from spiritlevel.study.records import finite
from spiritlevel.study.tasks import TASKS
from spiritlevel.study.tasks.common import feed
from spiritlevel.study.tasks.training import training
from spiritlevel.train import train


def settings(**more):
    shape = {"network": "mlp", "norm": "batch", "init": "he", "depth": 2, "width": 6, "size": 8}
    run = {"lr": 0.3, "seed": 5, "steps": 25, "every": 8, "batch_size": 16}
    return shape | run | more


def layer_by_layer(model, x):
    """(input of each linear layer, what comes out at each norm's place), in training mode."""
    fed, placed = [x.flatten(1)], []
    for layer in model.hidden:
        placed.append(layer.norm(layer.linear(fed[-1])))
        fed.append(layer.act(placed[-1]))
    return fed, placed


def read_by_hand(s):
    """The same run with everything read by hand: (curve, model, readings)."""
    data = feed(tiny(), s)
    torch.manual_seed(s["seed"])
    model = build(s, data)
    readings = {"percentiles": [], "activation": [], "gradient": []}
    linear = [*(layer.linear for layer in model.hidden), model.classifier]

    def observe(_step, x, y):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        random_state = torch.get_rng_state()
        with torch.no_grad():
            _, placed = layer_by_layer(model, data.test_x[:])
        readings["percentiles"].append(
            [np.percentile(z.numpy(), [15, 50, 85], axis=0) for z in placed]
        )
        torch.set_rng_state(random_state)
        fed, _ = layer_by_layer(model, x)
        readings["activation"].append([h.detach().numpy().std() for h in fed])
        F.cross_entropy(model.classifier(fed[-1]), y).backward()
        readings["gradient"].append([np.linalg.norm(m.weight.grad) for m in linear])
        model.zero_grad()
        torch.set_rng_state(random_state)
        for name, b in model.named_buffers():
            b.copy_(buffers[name])

    names = ("lr", "seed", "steps", "every", "batch_size")
    curve = train(model, data.train_x, data.train_y, observe=observe, **{n: s[n] for n in names})
    return curve, model, readings


def drift_by_hand(percentiles):
    """(T, 3, F): how far a unit's median moves from one reading to the next, in half-widths."""
    moves, widths = [], []
    for t in range(len(percentiles)):
        for unit in range(percentiles.shape[2]):
            low, middle, high = percentiles[t, :, unit]
            widths.append((high - low) / 2)
            if t:
                moves.append(abs(middle - percentiles[t - 1, 1, unit]))
    return (sum(moves) / len(moves)) / (sum(widths) / len(widths))


@pytest.mark.parametrize("norm", ["batch", "none", "noisy-batch"])
def test_a_run_is_read_as_by_hand(norm):
    s = settings(norm=norm)
    result = training(s, tiny())
    curve, _model, readings = read_by_hand(s)
    assert result["loss"] == pytest.approx(curve.loss, rel=1e-5)
    assert result["accuracy"] == curve.accuracy
    assert result["final_loss"] == pytest.approx(sum(curve.loss[5:]) / 20)
    assert result["final_accuracy"] == pytest.approx(sum(curve.accuracy[5:]) / 20)
    assert result["steps"] == [0, 8, 16, 24]
    assert result["places"] == ["hidden.0.norm", "hidden.1.norm"]
    assert result["layers"] == ["hidden.0.linear", "hidden.1.linear", "classifier"]
    by_place = np.array(readings["percentiles"]).transpose(1, 0, 2, 3)  # (place, T, 3, F)
    assert by_place.shape == (2, 4, 3, 6)
    drift = [drift_by_hand(found) for found in by_place]
    assert result["drift"] == pytest.approx(drift, rel=1e-4)
    assert drift[0] != pytest.approx(drift[1], rel=0.01)
    np.testing.assert_allclose(result["unit"], by_place[-1, :, :, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["activation_std"], readings["activation"], rtol=1e-5)
    np.testing.assert_allclose(result["weight_gradient"], readings["gradient"], rtol=1e-4)
    assert result["diverged_at"] is None
    assert result["classes"] == CLASSES
    assert result["loss"][-1] < result["loss"][0]
    assert 0 < result["test_accuracy"] <= 1
    assert 0 < result["test_accuracy_batch"] <= 1


def test_it_is_a_task_of_the_name_by_which_claims_ask_for_it():
    assert TASKS["train"] is training


@pytest.mark.parametrize("norm", ["noisy-batch", "none"])
def test_the_same_settings_give_the_same_numbers(norm):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(training(settings(norm=norm, steps=9), tiny()))
    assert results[0] == results[1]
    assert training(settings(norm=norm, steps=9, seed=6), tiny())["loss"] != results[0]["loss"]


def test_test_accuracy_is_read_by_running_moments_and_by_those_of_the_batch():
    s = settings(steps=3, lr=0.1)
    result = training(s, tiny())
    _, model, _ = read_by_hand(s)
    data = feed(tiny(), s)
    read = []
    for mode in (False, True):
        answers = model.train(mode)(data.test_x[:]).argmax(1)
        read.append((answers == data.test_y).double().mean().item())
    assert [result["test_accuracy"], result["test_accuracy_batch"]] == pytest.approx(read)
    assert abs(read[0] - read[1]) > 0.1, "after three steps the running moments lag behind"


def test_momentum_and_augmentation_reach_the_run():
    plain = training(settings(steps=9), tiny())["loss"]
    for more in ({"momentum": 0.9}, {"augment": True}):
        found = training(settings(steps=9) | more, tiny())["loss"]
        assert found != plain
        assert (found[0] == plain[0]) == ("momentum" in more)


def test_a_convolutional_network_is_read_at_every_norm():
    s = settings(network="small_vgg", init="he", norm="none", lr=0.03, steps=3, every=1, depth=4)
    del s["width"]
    result = training(s, tiny())
    assert len(result["places"]) == len(result["drift"]) == 4
    assert all(name.endswith("norm") for name in result["places"])
    assert result["layers"][-1] == "classifier"
    assert np.shape(result["activation_std"]) == np.shape(result["weight_gradient"]) == (3, 5)
    assert np.shape(result["unit"]) == (3, 3)
    assert all(value > 0 for value in result["drift"])


def test_a_network_that_stands_still_does_not_drift():
    result = training(settings(lr=0.0), tiny())
    assert result["drift"] == [0.0, 0.0]


@pytest.mark.parametrize(("more", "first"), [({"lr": 1e9}, False), ({"init": "normal*1e30"}, True)])
def test_divergence_is_a_result(more, first):
    result = training(settings(norm="none", **more), tiny())
    assert (result["diverged_at"] == 0) == first
    assert len(result["loss"]) == result["diverged_at"] + 1
    assert result["final_loss"] is None
    assert result["final_accuracy"] == result["test_accuracy"] == 0.0
    assert result["test_accuracy_batch"] == 0.0
    assert len(result["steps"]) == len(result["unit"]) == 1 + (result["diverged_at"] or 0) // 8
    assert not any(map(math.isfinite, result["drift"]))
    json.dumps(finite(result), allow_nan=False)
