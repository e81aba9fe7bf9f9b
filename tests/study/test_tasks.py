"""What the tasks add to the probe: schedules, arms, interpolation, initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spiritlevel.data import load, prepare
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
from spiritlevel.study.config import PRESETS
from spiritlevel.study.run import all_cells
from spiritlevel.study.tasks import TASKS, drift, examples, gap
from spiritlevel.study.tasks.common import initialise, smoothed, steps_to, tail_mean


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def cell(task: str, **settings):
    """The settings of the smoke preset's first such cell."""
    return next(
        c.settings
        for c in all_cells(PRESETS["smoke"])
        if c.task == task and all(c.settings[name] == value for name, value in settings.items())
    )


def test_the_running_mean_and_the_step_that_reaches_a_target():
    accuracy = [0.0] * 10 + [1.0] * 10
    assert smoothed(accuracy, 4) == [sum(accuracy[i : i + 4]) / 4 for i in range(17)]
    assert steps_to(accuracy, 0.5, 4) == 12  # two of the last four
    assert steps_to(accuracy, 1.1, 4) is None
    assert steps_to([1.0] * 3, 0.5, 4) is None, "no full window"
    assert tail_mean([5.0, 1.0, 3.0], 2) == 2.0


@pytest.mark.parametrize(
    ("init", "std"), [("he", 1.0), ("he*2", 2.0), ("he*0.5", 0.5), ("normal*0.01", None)]
)
def test_initialise(init, std):
    torch.manual_seed(0)
    model = create_model("mlp", num_classes=10, in_chans=1, image_size=32, depth=2, width=400)
    weight = initialise(model, init).hidden[1].linear.weight
    wanted = 0.01 if std is None else std * math.sqrt(2 / 400)
    assert weight.std().item() == pytest.approx(wanted, rel=0.02)


def test_initialise_names_what_it_does_not_know():
    with pytest.raises(UsageError, match="got init 'zeros'"):
        initialise(nn.Linear(2, 2), "zeros")


def test_drift_is_the_mean_step_of_the_median_over_the_mean_half_width():
    readings = [torch.tensor([[0.0, 0.0], [m, 2 * m], [4.0, 8.0]]) for m in (1.0, 2.0, 0.0)]
    # Two units: medians 1, 2, 0 and 2, 4, 0; half-widths 2 and 4.
    steps = [1.0, 2.0, 2.0, 4.0]
    assert drift._drift(readings) == pytest.approx(sum(steps) / 4 / 3.0)
    assert drift._range(readings) == pytest.approx((2.0 + 4.0) / 2 / 3.0)


def test_at_training_loss_interpolates_in_the_logarithm():
    # From 0.8 to 0.05 the logarithm halves four times; 0.4 is the first quarter of the way.
    assert gap.at_training_loss([1.0, 0.8, 0.05], [3.0, 2.0, 1.0], 0.4) == pytest.approx(1.75)
    assert gap.at_training_loss([1.0, 0.8, 0.05], [3.0, 2.0, 1.0], 0.1) == pytest.approx(1.25)
    assert gap.at_training_loss([1.0, 0.2], [3.0, 2.0], 0.1) is None


def test_the_images_of_a_gap_run_are_drawn_by_seed_and_tested_on_all_others(digits):
    data = prepare(digits)
    split = gap._draw(data.train_x, data.train_y, data.test_x, data.test_y, 100, seed=3)
    again = gap._draw(data.train_x, data.train_y, data.test_x, data.test_y, 100, seed=3)
    other = gap._draw(data.train_x, data.train_y, data.test_x, data.test_y, 100, seed=4)
    assert torch.equal(split.train_x, again.train_x)
    assert not torch.equal(split.train_x, other.train_x)
    assert len(split.train_x) == 100
    assert len(split.train_x) + len(split.test_x) == len(data.train_x) + len(data.test_x)
    assert torch.cat([split.train_x, split.test_x]).double().sum().item() == pytest.approx(
        torch.cat([data.train_x, data.test_x]).double().sum().item(), rel=1e-9
    )


@pytest.mark.parametrize("norm", ["batch", "ghost:4"])
def test_losses_are_read_with_the_exact_statistics_of_the_training_images(norm):
    torch.manual_seed(0)
    model = create_model(
        "mlp", num_classes=3, norm=norm, in_chans=1, image_size=4, depth=2, width=8
    )
    x = torch.randn(50, 1, 4, 4)
    gap._set_statistics(model, x)
    first, second = model.hidden[0], model.hidden[1]
    z = first.linear(x.flatten(1))
    assert torch.allclose(first.norm.running_mean, z.mean(0), atol=1e-6)
    assert torch.allclose(first.norm.running_var, z.var(0), atol=1e-5)
    h = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()).relu()
    assert torch.allclose(second.norm.running_mean, second.linear(h).mean(0), atol=1e-5)
    assert getattr(first.norm, "group_size", 4) == 4
    assert first.norm.momentum == 0.1


def test_noise_off_sees_all_training_images_and_noise_on_does_not(digits):
    on = gap.gap(cell("gap", norm="batch", noise=True, lr=0.1) | {"steps": 10}, digits)
    off = gap.gap(cell("gap", norm="batch", noise=False, lr=0.1) | {"steps": 10}, digits)
    assert on["train_loss"][0] == off["train_loss"][0]
    assert on["train_loss"][1] != off["train_loss"][1]


def test_a_diverged_run_is_a_result(digits):
    settings = cell("sweep", norm="none") | {"lr": 1e6}
    result = TASKS["sweep"](settings, digits)
    assert result["diverged_at"] is not None
    assert result["final_loss"] is None


def test_the_shift_of_a_mean_moves_a_layer_and_not_a_normalized_one(digits):
    result = examples.shift(cell("example-shift"), digits)
    assert result["input_means"] == pytest.approx([100, 50], abs=1e-3)
    assert result["with"]["mean_swing"] < 1e-5
    assert result["without"]["mean_swing"] > 0.01
    first, second = (torch.tensor(m) for m in result["without"]["means"])
    # A convolution is linear: 50 less a pixel moves channel c by 50 times the sum of its weights.
    torch.manual_seed(cell("example-shift")["seed"])
    layer = nn.Conv2d(1, 16, 3, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert torch.allclose(
        first - second, 50 * layer.weight.detach().sum((1, 2, 3)), rtol=1e-3, atol=1e-2
    )


def test_the_scale_of_the_input_goes_through_without_bn_only(digits):
    last = {
        (norm, scale): examples.scale(
            cell("example-scale", norm=norm, init="he", input_scale=scale), digits
        )["last_activation"]
        for norm in ("none", "batch")
        for scale in (1.0, 1000.0)
    }
    assert last["none", 1000.0] / last["none", 1.0] == pytest.approx(1000, rel=1e-3)
    assert last["batch", 1000.0] / last["batch", 1.0] == pytest.approx(1, rel=1e-2)


def test_the_bell_counts_normalized_values():
    """Fed normal values, a norm alone gives the shares of the normal curve."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3))
    found = examples._shares(model, 7 + 3 * torch.randn(200, 3, 20, 20))
    for k, share in found["within"].items():
        assert share == pytest.approx(math.erf(int(k) / math.sqrt(2)), abs=5e-3)
    assert sum(found["density"]) * 0.1 == pytest.approx(1, abs=1e-3)
    assert model[0].num_batches_tracked == 0, "reading changed the model"


def test_growth_is_told_in_the_direction_of_each_pass(digits):
    """Forward from the image, backward from the loss: both factors above 1 mean explosion."""
    settings = cell("depth", model="mlp", norm="none", init="he*2")
    result = TASKS["depth"](settings, digits)
    assert result["activation_growth"] > 1.5
    assert result["gradient_growth"] > 1.5
    gradient = result["input_gradient"][2:-1]
    ratio = (gradient[0] / gradient[-1]) ** (1 / (len(gradient) - 1))
    assert result["gradient_growth"] == pytest.approx(ratio, rel=0.2)
    with_bn = TASKS["depth"](settings | {"norm": "batch", "depth": 20, "width": 128}, digits)
    assert 1.15 < with_bn["gradient_growth"] < 1.27
