"""The smaller tasks, and what all tasks share. The larger ones have files of their own."""

from __future__ import annotations

import json
import math
import random
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import CLASSES, tiny
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.nn import norm_layer
from spiritlevel.probe import batch_noise, signal_by_depth, weight_layers, weight_scaling
from spiritlevel.study import networks
from spiritlevel.study.config import PRESETS
from spiritlevel.study.factory import as_factory
from spiritlevel.study.networks import build
from spiritlevel.study.records import finite
from spiritlevel.study.run import all_cells
from spiritlevel.study.tasks import TASKS, examples
from spiritlevel.study.tasks.common import (
    compact,
    feed,
    final_loss,
    run,
    seeded,
    smoothed,
    steps_to,
    tail_mean,
)
from spiritlevel.study.tasks.depth import depth
from spiritlevel.study.tasks.invariance import invariance
from spiritlevel.study.tasks.noise import noise
from spiritlevel.study.tasks.scaling import scaling
from spiritlevel.train import Curve, train

MLP = {"network": "mlp", "norm": "batch", "init": "he", "depth": 2, "width": 16, "size": 8}
VGG = {"network": "small_vgg", "norm": "batch", "init": "he", "size": 8}


# ---- what all share ------------------------------------------------------------------------------


def test_the_running_mean_and_the_step_that_reaches_a_target():
    accuracy = [0.0] * 10 + [1.0] * 10
    assert smoothed(accuracy, 4) == [sum(accuracy[i : i + 4]) / 4 for i in range(17)]
    assert steps_to(accuracy, 0.5, 4) == 12  # two of the last four
    assert steps_to(accuracy, 1.1, 4) is None
    assert steps_to([1.0] * 3, 0.5, 4) is None, "no full window"
    assert tail_mean([5.0, 1.0, 3.0], 2) == 2.0


def test_the_final_loss_is_the_mean_of_the_last_twenty():
    losses = [100.0] * 5 + [float(i) for i in range(20)]
    assert final_loss(Curve(loss=losses)) == 9.5
    assert final_loss(Curve(loss=losses, diverged_at=24)) is None


def test_compact_keeps_six_digits_at_any_depth():
    assert compact([1.23456789, (1e-20 / 3, [math.inf]), 7, None, True, "0.123456789"]) == [
        1.23457,
        [3.33333e-21, [math.inf]],
        7,
        None,
        True,
        "0.123456789",
    ]
    assert math.isnan(compact(math.nan))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_whatever_a_users_code_draws_from_comes_from_the_seed(seed):
    drawn = []
    for of in (seed, seed, 7):
        seeded(of)
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_images_are_fed_at_the_size_that_is_set_but_never_enlarged():
    assert feed(tiny(), {"size": 8}).train_x.shape == (200, 1, 8, 8)
    assert feed(tiny(), {"size": 64}).size == 32
    own = feed(tiny(3), {"size": 8, "network": "mlp"})
    given = {"size": 8, "network": "mlp", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.25]}
    fed = feed(tiny(3), given)
    assert (fed.mean, fed.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.25))
    mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (own.mean, own.std))
    pixels = own.train_x[:2] * std + mean
    by = [torch.tensor(given[name]).view(3, 1, 1) for name in ("mean", "std")]
    assert torch.allclose(fed.train_x[:2], (pixels - by[0]) / by[1], atol=1e-5)


def test_run_trains_as_the_settings_say():
    s = MLP | {"lr": 0.1, "steps": 5, "batch_size": 16, "seed": 3, "momentum": 0.5, "augment": True}
    data = feed(tiny(), s)
    curves, steps = [], []
    for how in ("run", "train"):
        torch.manual_seed(0)
        model = build(s, data)
        if how == "run":
            observe = lambda step, *_: steps.append(step)  # noqa: E731
            curves.append(run(model, data, s | {"every": 2}, observe))
        else:
            given = {name: s[name] for name in ("lr", "steps", "batch_size", "seed")}
            more = {"momentum": 0.5, "augment": True}
            curves.append(train(model, data.train_x, data.train_y, **given, **more))
    assert curves[0] == curves[1]
    assert steps == [0, 2, 4]


def test_every_kind_of_cell_that_a_study_plans_is_a_task():
    planned = {cell.task for preset in PRESETS.values() for cell in all_cells(preset)}
    assert planned == set(TASKS)


# ---- depth ---------------------------------------------------------------------------------------


def deep(**more):
    return MLP | {"depth": 12, "width": 64, "seed": 2, "batch_size": 64} | more


def test_growth_is_told_in_the_direction_of_each_pass():
    """Forward from the image, backward from the loss: both factors above 1 mean explosion."""
    result = depth(deep(norm="none", init="he*2"), tiny())
    assert result["activation_growth"] > 1.5
    assert result["gradient_growth"] > 1.5
    gradient, activation = result["input_gradient"][2:-1], result["activation_std"][2:-1]
    steps = np.arange(len(gradient))
    for values, growth in ((activation, "activation_growth"), (gradient[::-1], "gradient_growth")):
        slope, _ = np.polyfit(steps, np.log(values), 1)
        assert result[growth] == pytest.approx(math.exp(slope), rel=1e-6)
    halved = depth(deep(norm="none", init="he*0.5"), tiny())
    assert halved["activation_growth"] < 0.7
    assert halved["gradient_growth"] < 0.7


def test_with_bn_gradients_grow_as_the_theory_says():
    result = depth(deep(depth=20, width=128), tiny())
    assert 1.15 < result["gradient_growth"] < 1.27  # sqrt(pi / (pi - 1)) = 1.211
    assert result["activation_growth"] == pytest.approx(1, abs=0.02)


def test_depth_reads_the_first_batch_of_the_network_the_seed_draws():
    s = VGG | {"depth": 5, "norm": "none", "seed": 2, "batch_size": 10}
    result = depth(s, tiny())
    data = feed(tiny(), s)
    torch.manual_seed(2)
    reading = signal_by_depth(build(s, data), data.train_x[:10], data.train_y[:10])
    assert result["layers"] == reading.layers
    assert len(result["layers"]) == 6
    assert result["weight_gradient"] == reading.weight_gradient
    assert result["loss"] == reading.loss
    assert depth(s | {"seed": 3}, tiny())["loss"] != result["loss"]


def test_where_a_signal_dies_there_is_no_growth():
    result = depth(deep(norm="none", init="normal*0.0"), tiny())
    assert result["activation_growth"] is result["gradient_growth"] is None
    json.dumps(finite(result), allow_nan=False)


# ---- noise ---------------------------------------------------------------------------------------


def noisy(**more):
    trained = {"seed": 3, "lr": 0.1, "steps": 5, "batch_size": 16}
    return MLP | trained | {"sizes": (4, 16, 64), "draws": 12, "images": 3} | more


def test_noise_falls_with_the_batch_as_its_slope_tells():
    result = noise(noisy(), tiny())
    assert result["sizes"] == [4, 16, 64]
    assert set(result["variance"]) == set(result["slope"]) == {"first", "last", "logits"}
    for place, values in result["variance"].items():
        slope, _ = np.polyfit(np.log([4, 16, 64]), np.log(values), 1)
        assert result["slope"][place] == pytest.approx(slope, rel=1e-9)
        assert -1.6 < slope < -0.6
    assert len({tuple(values) for values in result["variance"].values()}) == 3


def test_noise_is_read_after_training_at_the_first_and_last_norm():
    s = noisy(sizes=(8,), depth=3)
    result = noise(noisy(sizes=(8, 32), depth=3), tiny())
    data = feed(tiny(), s)
    torch.manual_seed(3)
    model = build(s, data)
    given = {name: s[name] for name in ("lr", "steps", "batch_size", "seed")}
    train(model, data.train_x, data.train_y, **given)
    first = batch_noise(
        model,
        data.test_x[:3],
        data.train_x[:],
        batch_size=8,
        draws=12,
        generator=torch.Generator().manual_seed(3),
        layers=["hidden.0.norm", "hidden.2.norm"],
    )
    assert result["variance"]["first"][0] == pytest.approx(first["hidden.0.norm"], rel=1e-6)
    assert result["variance"]["last"][0] == pytest.approx(first["hidden.2.norm"], rel=1e-6)
    assert result["variance"]["logits"][0] == pytest.approx(first[""], rel=1e-6)


# ---- scaling -------------------------------------------------------------------------------------


def scaled(**more):
    return {"network": "small_vgg", "init": "he", "size": 8, "seed": 1, "batch_size": 12} | more


def test_scaling_is_the_worst_over_layers_that_a_norm_follows():
    s = scaled(depth=4)
    result = scaling(s, tiny())
    places = ["stages.0.0", "stages.0.1", "stages.1.0", "stages.2.0"]
    assert result["layers"] == [f"{place}.conv" for place in places]
    assert result["scales"] == [0.01, 10.0, 1000.0]
    assert max(result["errors"]["0.0"]) < 1e-10
    assert result["cosine"] < 1e-10
    assert result["errors"]["1e-05"][0] > 1e-4
    assert min(result["errors_without"]) > 0.1
    assert result["cosine_without"] > 0.01
    data = feed(tiny(), s)
    x, y = data.train_x[:12].double(), data.train_y[:12]
    for norm, errors in (("batch", result["errors"]["1e-05"]), ("none", result["errors_without"])):
        torch.manual_seed(1)
        model = build(s | {"norm": norm}, data).double()
        read = [
            weight_scaling(model, x, y, name, scales=(0.01, 10, 1e3)) for name in result["layers"]
        ]
        assert errors == pytest.approx([max(r.errors[i] for r in read) for i in range(3)], rel=1e-6)
    assert result["cosine_without"] == pytest.approx(sum(r.cosine for r in read) / 4, rel=1e-9)


def test_of_many_layers_six_are_read():
    result = scaling(scaled(depth=9), tiny())
    assert len(result["layers"]) == 6
    assert result["layers"][-1] == "stages.2.2.conv"


class NormFirst(nn.Module):
    """What it normalises is the image."""

    def __init__(self, num_classes, in_chans, norm):
        super().__init__()
        self.norm, self.head = norm_layer(norm)(in_chans), nn.LazyLinear(num_classes)

    def forward(self, x):
        return self.head(self.norm(x).flatten(1))


def test_a_network_in_which_no_norm_follows_a_weight(monkeypatch):
    monkeypatch.setattr(networks, "_factories", {})
    factory = as_factory(NormFirst)
    networks.use_factory(factory)
    with pytest.raises(UsageError) as caught:
        scaling(scaled(network=factory.spec, init="default"), tiny())
    assert str(caught.value) == (
        f"got {factory.spec}, in which no norm is fed by a weight layer directly; "
        "wanted one that is: its scale is what a norm takes away"
    )


# ---- invariance ----------------------------------------------------------------------------------


@cache
def _identities():
    return invariance({"seed": 5, "batch_size": 40, "size": 6}, tiny())


@pytest.fixture
def identities():
    return _identities()


def test_in_a_single_layer_the_identities_are_exact_without_eps(identities):
    assert list(identities["errors"]) == ["0.0", "1e-05", "0.001"]
    assert identities["scales"] == [0.001, 0.01, 0.1, 10.0, 1000.0]
    assert max(identities["errors"]["0.0"]) < 1e-12
    assert max(identities["errors_float32"]) < 1e-4
    for small, large in zip(
        identities["errors"]["1e-05"], identities["errors"]["0.001"], strict=True
    ):
        assert 1e-16 < small < large
    assert min(identities["errors_without"]) > 0.1
    assert identities["cosine"] < 1e-12 < identities["cosine_eps"] < 1e-3
    assert identities["cosine_without"] > 0.01


def test_weights_ten_times_larger_descend_alike_at_a_rate_a_hundred_times_larger(identities):
    found, without = identities["trajectories"], identities["trajectories_without"]
    assert len(found["loss"]) == 50
    assert found["loss"][-1] < found["loss"][0] / 2
    assert found["worst_difference"] < 1e-10
    assert without["worst_difference"] > 0.1
    for run_of in (found, without):
        pairs = zip(run_of["loss"], run_of["loss_same_effective_rate"], strict=True)
        assert run_of["worst_difference"] == max(abs(a - b) for a, b in pairs)
    assert found["loss_same_rate"][0] == pytest.approx(found["loss"][0], rel=1e-10)
    assert found["loss_same_rate"][-1] > 2 * found["loss"][-1], "at the old rate it is slower"


def test_the_squared_norm_grows_by_the_squared_steps(identities):
    """Pythagoras, since with BN a step is at right angles to the weights."""
    found, without = identities["trajectories"], identities["trajectories_without"]
    assert found["norm_growth"] == pytest.approx(found["sum_of_squared_steps"], rel=1e-9)
    assert without["norm_growth"] != pytest.approx(without["sum_of_squared_steps"], rel=0.1)


def test_the_trajectory_is_that_of_torchs_layers(identities):
    data = feed(tiny(), {"size": 6})
    u, y = data.train_x[:40].flatten(1).double(), data.train_y[:40]
    net = nn.Sequential(nn.Linear(36, 30, bias=False), nn.BatchNorm1d(30, 1e-300, affine=False))
    net = net.double()
    torch.manual_seed(5)
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(30, 36, dtype=torch.float64) * math.sqrt(2 / 36))
    head = torch.randn(CLASSES, 30, dtype=torch.float64) * math.sqrt(2 / 30)
    losses = []
    for _ in range(50):
        loss = F.cross_entropy(net(u).relu() @ head.T, y)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, [net[0].weight])
        with torch.no_grad():
            net[0].weight -= 0.1 * gradient
    assert identities["trajectories"]["loss"] == pytest.approx(losses, rel=1e-9)


# ---- examples ------------------------------------------------------------------------------------


def test_the_shift_of_a_mean_moves_a_layer_and_not_a_normalized_one():
    s = {"seed": 4, "batch_size": 32, "channels": 16, "size": 16}
    result = examples.shift(s, tiny())
    assert result["input_means"] == pytest.approx([100, 50], abs=1e-3)
    assert result["with"]["mean_swing"] < 1e-5
    assert result["without"]["mean_swing"] > 0.01
    first, second = (torch.tensor(m) for m in result["without"]["means"])
    # A convolution is linear: 50 less a pixel moves channel c by 50 times the sum of its weights.
    torch.manual_seed(4)
    layer = nn.Conv2d(1, 16, 3, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    moved = 50 * layer.weight.detach().sum((1, 2, 3))
    assert torch.allclose(first - second, moved, rtol=1e-3, atol=1e-2)
    assert result["without"]["largest_swing"] > result["without"]["mean_swing"]


def test_the_scale_of_the_input_goes_through_without_bn_only():
    def last(norm, scale, what="last_activation"):
        s = deep(norm=norm, input_scale=scale)
        return examples.scale(s, tiny())[what]

    for scale in (1e-3, 1e3):
        assert last("none", scale) / last("none", 1.0) == pytest.approx(scale, rel=1e-3)
    assert last("batch", 1e3) / last("batch", 1.0) == pytest.approx(1, rel=1e-2)
    reading = signal_of(deep(norm="none"), 10.0)
    result = examples.scale(deep(norm="none", input_scale=10.0), tiny())
    assert result["activation_std"] == reading.activation_std
    assert result["weight_gradient"] == reading.weight_gradient
    assert result["last_activation"] == reading.activation_std[-1]
    assert result["first_gradient"] == reading.weight_gradient[1]


def signal_of(s, scale):
    data = feed(tiny(), s)
    torch.manual_seed(s["seed"])
    count = s["batch_size"]
    return signal_by_depth(build(s, data), data.train_x[:count] * scale, data.train_y[:count])


def test_the_bell_counts_normalized_values():
    """Fed normal values, a norm alone gives the shares of the normal curve."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3))
    found = examples._shares(model, 7 + 3 * torch.randn(200, 3, 20, 20))
    for k, share in found["within"].items():
        assert share == pytest.approx(math.erf(int(k) / math.sqrt(2)), abs=5e-3)
    assert sum(found["density"]) * 0.1 == pytest.approx(1, abs=1e-3)
    assert model[0].num_batches_tracked == 0, "reading changed the model"


def test_the_bell_is_read_before_and_after_training():
    s = VGG | {"depth": 3, "seed": 1, "lr": 0.1, "steps": 4, "batch_size": 16, "probe_images": 30}
    result = examples.bell(s, tiny())
    data = feed(tiny(), s)
    torch.manual_seed(1)
    model = build(s, data)
    assert result["before"] == examples._shares(model, data.train_x[:30])
    given = SimpleNamespace(train_x=data.train_x, train_y=data.train_y)
    run(model, given, s)
    assert result["after"] == examples._shares(model, data.train_x[:30])
    assert result["after"] != result["before"]
    assert len(result["after"]["by_layer"]) == len(weight_layers(model)) - 1 == 3
    for one, two, three in result["after"]["by_layer"]:
        assert 0.5 < one < two < three <= 1
