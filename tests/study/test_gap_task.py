"""Overfitting read at equal training loss: which images, with which statistics, and where."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny
from torch import nn
from torch.nn import functional as F

from spiritlevel.data import batches
from spiritlevel.models import create_model
from spiritlevel.study.networks import build
from spiritlevel.study.tasks import gap
from spiritlevel.study.tasks.common import feed


def settings(**more):
    shape = {"network": "mlp", "norm": "batch", "init": "he", "depth": 2, "width": 16, "size": 8}
    run = {"noise": True, "seed": 3, "lr": 0.2, "steps": 6, "every": 2, "batch_size": 16}
    return shape | run | {"images": 60, "test_images": 70, "target": 0.5} | more


def rows(x):
    return {tuple(image.flatten().tolist()) for image in x}


def test_no_test_image_is_among_those_trained_on():
    data = feed(tiny(), settings())
    split = gap._draw(data, 60, 70, seed=3)
    assert len(split.train_x) == len(split.train_y) == len(rows(split.train_x)) == 60
    assert len(split.test_x) == len(split.test_y) == len(rows(split.test_x)) == 70
    assert not rows(split.train_x) & rows(split.test_x)
    everything = rows(data.train_x[:]) | rows(data.test_x[:])
    assert rows(split.train_x) <= rows(data.train_x[:])
    assert rows(split.test_x) <= everything
    assert rows(split.test_x) & rows(data.test_x[:])
    assert rows(split.test_x) & rows(data.train_x[:])
    of = [*zip(data.train_x[:], data.train_y, strict=True)]
    of += [*zip(data.test_x[:], data.test_y, strict=True)]
    label = {tuple(image.flatten().tolist()): int(y) for image, y in of}
    for x, y in ((split.train_x, split.train_y), (split.test_x, split.test_y)):
        assert [label[tuple(image.flatten().tolist())] for image in x] == y.tolist()


def test_they_are_drawn_by_seed():
    data = feed(tiny(), settings())
    split, again, other = (gap._draw(data, 60, 70, seed) for seed in (3, 3, 4))
    assert all(
        torch.equal(a, b) for a, b in zip(vars(split).values(), vars(again).values(), strict=True)
    )
    assert rows(split.train_x) != rows(other.train_x)
    assert rows(split.test_x) != rows(other.test_x)


def test_with_more_asked_for_than_there_are_all_others_are_tested_on():
    data = feed(tiny(), settings())
    split = gap._draw(data, 60, 10**6, seed=3)
    assert rows(split.test_x) | rows(split.train_x) == rows(data.train_x[:]) | rows(data.test_x[:])
    assert len(split.test_x) == 200 + 60 - 60


def test_at_training_loss_interpolates_in_the_logarithm():
    # From 0.8 to 0.05 the logarithm halves four times; 0.4 is the first quarter of the way.
    assert gap.at_training_loss([1.0, 0.8, 0.05], [3.0, 2.0, 1.0], 0.4) == pytest.approx(1.75)
    assert gap.at_training_loss([1.0, 0.8, 0.05], [3.0, 2.0, 1.0], 0.1) == pytest.approx(1.25)
    assert gap.at_training_loss([1.0, 0.2], [3.0, 2.0], 0.2) == 2.0
    # The first time counts, although the loss rises again and passes once more.
    assert gap.at_training_loss([1.0, 0.25, 1.0, 0.25], [0.0, 2.0, 9.0, 7.0], 0.5) == 1.0


@pytest.mark.parametrize(
    "losses", [[1.0, 0.2], [0.05, 0.01], [1.0, math.nan, math.nan], [1.0], [1.0, 0.0], [0.1, 0.2]]
)
def test_a_loss_that_is_not_passed_has_no_reading(losses):
    assert gap.at_training_loss(losses, [1.0] * len(losses), 0.1) is None


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


def test_the_settings_of_a_norm_are_put_back_also_when_the_pass_fails():
    model = nn.Sequential(create_model("mlp", 3, "ghost:4", 1, image_size=4, depth=1, width=8))
    with pytest.raises(ValueError, match="made for"):
        gap._set_statistics(model, torch.zeros(6, 1, 5, 5))
    assert model[0].hidden[0].norm.momentum == 0.1
    assert model[0].hidden[0].norm.group_size == 4


def logits_by_hand(model, train_x, x):
    """Every norm by the statistics of all of `train_x`; its running variance is the unbiased."""
    seen, h = train_x.flatten(1), x.flatten(1)
    for layer in model.hidden:
        z, out = layer.linear(seen), layer.linear(h)
        if not isinstance(layer.norm, nn.Identity):
            mean, w, b, eps = z.mean(0), layer.norm.weight, layer.norm.bias, layer.norm.eps
            out = (out - mean) / (z.var(0) + eps).sqrt() * w + b
            z = (z - mean) / (z.var(0, correction=0) + eps).sqrt() * w + b
        seen, h = z.relu(), out.relu()
    return model.classifier(h)


def run_by_hand(s):
    """(training loss, test loss, test accuracy) at every reading."""
    data = feed(tiny(), s)
    split = gap._draw(data, s["images"], s["test_images"], s["seed"])
    torch.manual_seed(s["seed"])
    model = build(s, data)
    order = torch.Generator().manual_seed(s["seed"])
    found = []

    def read():
        with torch.no_grad():
            of_train = logits_by_hand(model, split.train_x, split.train_x)
            of_test = logits_by_hand(model, split.train_x, split.test_x)
        hits = (of_test.argmax(1) == split.test_y).double().mean().item()
        losses = F.cross_entropy(of_train, split.train_y), F.cross_entropy(of_test, split.test_y)
        found.append((*map(float, losses), hits))

    read()
    drawn = batches(len(split.train_x), s["batch_size"], s["steps"], generator=order)
    for step, index in enumerate(drawn, 1):
        # Without the noise the statistics are of all images, and the loss is of the batch.
        logits = model(split.train_x[index]) if s["noise"] else model(split.train_x)[index]
        loss = F.cross_entropy(logits, split.train_y[index])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= s["lr"] * gradient
        if step % s["every"] == 0:
            read()
    return [list(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("norm", "noise"), [("batch", True), ("batch", False), ("ghost:4", True), ("none", True)]
)
def test_a_run_is_that_by_hand(norm, noise):
    s = settings(norm=norm, noise=noise, lr=0.05)
    result = gap.gap(s, tiny())
    train_loss, test_loss, test_accuracy = run_by_hand(s)
    assert result["train_loss"] == pytest.approx(train_loss, rel=1e-4)
    assert result["test_loss"] == pytest.approx(test_loss, rel=1e-4)
    assert result["test_accuracy"] == pytest.approx(test_accuracy, rel=1e-5)
    assert result["steps"] == [0, 2, 4, 6]
    target = (train_loss[1] * train_loss[2]) ** 0.5
    found = gap.gap(s | {"target": target}, tiny())
    halfway = (test_loss[1] + test_loss[2]) / 2
    assert found["test_loss_at_target"] == pytest.approx(halfway, rel=1e-3)
    assert found["gap_at_target"] == pytest.approx(halfway - target, rel=1e-2)
    assert found["test_accuracy_at_target"] == pytest.approx(sum(test_accuracy[1:3]) / 2, rel=1e-3)


def test_noise_off_sees_all_training_images_and_noise_on_does_not():
    on, off, small = (
        gap.gap(settings(norm=norm, noise=noise), tiny())
        for norm, noise in (("batch", True), ("batch", False), ("ghost:4", True))
    )
    assert on["train_loss"][0] == off["train_loss"][0] == small["train_loss"][0]
    assert len({run["train_loss"][1] for run in (on, off, small)}) == 3


def test_a_run_ends_where_its_loss_is_below_half_of_the_target():
    result = gap.gap(settings(steps=100, every=1, target=0.9), tiny())
    assert len(result["train_loss"]) < 60
    below = [loss < 0.45 for loss in result["train_loss"]]
    assert below == [False] * (len(below) - 1) + [True]
    assert result["test_loss_at_target"] > 0


def test_a_run_ends_where_it_leaves_the_floats():
    result = gap.gap(settings(norm="none", lr=1e9, steps=100, every=1), tiny())
    assert len(result["steps"]) == len(result["train_loss"]) < 60
    finite = [math.isfinite(loss) for loss in result["train_loss"]]
    assert finite == [True] * (len(finite) - 1) + [False]
    for name in ("test_loss_at_target", "test_accuracy_at_target", "gap_at_target"):
        assert result[name] is None


def test_the_same_settings_give_the_same_numbers():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(gap.gap(settings(), tiny()))
    assert results[0] == results[1]
    assert gap.gap(settings(seed=4), tiny()) != results[0]


def test_reading_does_not_change_the_run():
    """Noisy norms draw in training mode, in which the exact statistics are gathered, too."""
    often, seldom = (gap.gap(settings(norm="noisy-batch", every=n), tiny()) for n in (1, 3))
    assert often["train_loss"][3] == seldom["train_loss"][1]
    assert often["test_loss"][6] == seldom["test_loss"][2]
