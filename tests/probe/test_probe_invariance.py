import copy
import math

import numpy as np
import pytest
import torch
from by_hand import cross_entropy, double, images, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from spiritlevel.kernels.reference import batch_norm
from spiritlevel.probe import (
    effective_rate,
    gradient_cosine,
    normalised_weights,
    scaling_errors,
    weight_layers,
    weight_scaling,
)

U, WEIGHT, HEAD = double(32, 6), double(5, 6, seed=1), double(3, 5, seed=2)
LABELS = torch.arange(32) % 3


def behind_norm(eps):
    """Linear, batch norm, tanh, linear, cross-entropy."""

    def loss(weight, u):
        features = batch_norm(u @ weight.T, eps=eps).tanh()
        return F.cross_entropy(features @ HEAD.to(u.dtype).T, LABELS)

    return loss


def without_norm(weight, u):
    return F.cross_entropy((u @ weight.T).tanh() @ HEAD.T, LABELS)


def errors_by_modules(weight, u, scale, eps):
    """The same by torch's own layers and backward()."""

    def run(weight):
        linear = nn.Linear(6, 5, bias=False).double()
        linear.weight = nn.Parameter(weight.clone())
        norm, leaf = nn.BatchNorm1d(5, eps=eps, affine=False).double(), u.clone().requires_grad_()
        loss = F.nll_loss(torch.log_softmax(torch.tanh(norm(linear(leaf))) @ HEAD.T, 1), LABELS)
        loss.backward()
        return [v.detach().numpy() for v in (loss, leaf.grad, linear.weight.grad)]

    base, scaled = run(weight), run(weight * scale)
    scaled[2] = scaled[2] * scale
    return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(scaled, base, strict=True)]


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-3, 1e3))
def test_behind_an_exact_norm_all_three_hold_to_rounding(scale):
    errors = scaling_errors(behind_norm(0.0), WEIGHT, U, scale=scale)
    assert list(errors) == ["loss", "input", "weight"]
    assert max(errors.values()) < 1e-13


def test_in_float32_to_its_rounding():
    errors = scaling_errors(behind_norm(0.0), WEIGHT.float(), U.float(), scale=3.0)
    assert 1e-9 < max(errors.values()) < 1e-5


@pytest.mark.parametrize("scale", [0.01, 0.5, 7.0])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_with_eps_they_are_what_torchs_layers_say(eps, scale):
    got = scaling_errors(behind_norm(eps), WEIGHT, U, scale=scale)
    assert list(got.values()) == pytest.approx(errors_by_modules(WEIGHT, U, scale, eps), rel=1e-6)


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_with_eps_they_are_about_eps_over_the_scaled_variance(eps):
    variance = (U @ WEIGHT.T).var(0, correction=0).mean().item()
    scales = [0.03, 0.1, 0.3]
    errors = [scaling_errors(behind_norm(eps), WEIGHT, U, scale=a) for a in scales]
    for name in ("loss", "input", "weight"):
        values = [e[name] for e in errors]
        slope, _ = np.polyfit(np.log(scales), np.log(values), 1)
        assert slope == pytest.approx(-2, abs=0.15)
        for a, value in zip(scales, values, strict=True):
            assert 0.03 < value / (eps / (a**2 * variance)) < 30


def test_without_a_norm_none_holds():
    assert min(scaling_errors(without_norm, WEIGHT, U, scale=2.0).values()) > 0.05


def test_a_scale_of_one_changes_nothing():
    assert scaling_errors(without_norm, WEIGHT, U, scale=1.0) == dict.fromkeys(
        ["loss", "input", "weight"], 0.0
    )


def cosine_by_hand(loss, weight, u, h=1e-6):
    """Unit by unit, the gradient by finite differences."""
    cosines = []
    for unit in range(len(weight)):
        gradient = []
        for i in range(weight.shape[1]):
            step = torch.zeros_like(weight)
            step[unit, i] = h
            gradient.append((loss(weight + step, u) - loss(weight - step, u)).item() / (2 * h))
        w = weight[unit].tolist()
        dot = sum(a * b for a, b in zip(w, gradient, strict=True))
        cosines.append(abs(dot) / math.hypot(*w) / math.hypot(*gradient))
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("loss", [without_norm, behind_norm(0.5)], ids=["none", "large eps"])
def test_the_cosine_is_the_mean_over_units(loss):
    got = gradient_cosine(loss, WEIGHT, U)
    assert got > 0.02
    assert got == pytest.approx(cosine_by_hand(loss, WEIGHT, U), rel=1e-6)


def test_behind_a_norm_the_gradient_is_at_right_angles():
    assert gradient_cosine(behind_norm(0.0), WEIGHT, U) < 1e-14
    assert 1e-8 < gradient_cosine(behind_norm(1e-5), WEIGHT, U) < 1e-4


def test_a_dead_unit_does_not_hide_the_others():
    weight = double(4, 6).abs()
    weight[0] = -weight[0]  # behind a ReLU and on positive inputs: dead

    def loss(weight, u):
        return (u.abs() @ weight.T).relu().square().sum()

    alive = gradient_cosine(loss, weight[1:], U)
    assert gradient_cosine(loss, weight, U) == pytest.approx(alive)


def test_the_arguments_are_left_as_they_are():
    weight, u = WEIGHT.clone().requires_grad_(), U.clone()
    scaling_errors(behind_norm(0.0), weight, u, scale=10.0)
    gradient_cosine(behind_norm(0.0), weight, u)
    effective_rate(0.1, weight)
    assert weight.grad is None
    assert torch.equal(weight, WEIGHT)
    assert torch.equal(u, U)
    assert not u.requires_grad


def test_the_effective_rate_is_lr_over_the_squared_norm():
    assert effective_rate(0.5, torch.tensor([[3.0], [4.0]])) == 0.02
    expected = 0.3 / math.fsum(v**2 for v in WEIGHT.flatten().tolist())
    assert effective_rate(0.3, WEIGHT) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(a=st.floats(1e-2, 1e2))
def test_weights_of_one_effective_rate_turn_alike(a):
    """Van Laarhoven 2017: (W, lr) and (a W, a^2 lr) have the same direction after a step of SGD."""
    lr = 0.5
    assert effective_rate(a**2 * lr, a * WEIGHT) == pytest.approx(effective_rate(lr, WEIGHT))

    def direction_after_a_step(weight, lr):
        weight = weight.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(behind_norm(0.0)(weight, U), weight)
        moved = weight.detach() - lr * gradient
        return moved / moved.norm()

    torch.testing.assert_close(
        direction_after_a_step(a * WEIGHT, a**2 * lr), direction_after_a_step(WEIGHT, lr)
    )


SCALES = (0.1, 3.0, 100.0)


def scaled_by_hand(model, x, y, layer, seed):
    """Of two networks, the weights of one scaled in a copy: errors by scale, and the cosine."""

    def run(scale):
        twin = copy.deepcopy(model).train()
        weight = weight_layers(twin)[layer].weight
        with torch.no_grad():
            weight.mul_(scale)
        torch.manual_seed(seed)
        logits = twin(x)
        cross_entropy(logits, y).backward()
        return logits.detach().numpy(), weight.grad.numpy() * scale, weight.detach().numpy()

    logits, gradient, weight = run(1.0)
    errors = []
    for scale in SCALES:
        scaled, scaled_gradient, _ = run(scale)
        errors.append(
            max(
                np.linalg.norm(scaled - logits) / np.linalg.norm(logits),
                np.linalg.norm(scaled_gradient - gradient) / np.linalg.norm(gradient),
            )
        )
    cosines = [
        abs(np.vdot(w, g)) / np.linalg.norm(w) / np.linalg.norm(g)
        for w, g in zip(weight, gradient, strict=True)
        if np.any(g)
    ]
    return errors, sum(cosines) / len(cosines)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("norm", ["none", "batch:eps=0.1", "layer", "noisy-batch"])
@pytest.mark.parametrize("name", ["mlp", "small_vgg"])
def test_scaling_in_the_network_is_that_of_two_networks(name, norm, layer):
    model, (x, y) = make(name, norm), images()
    layer = list(weight_layers(model))[layer]
    torch.manual_seed(11)
    got = weight_scaling(model, x, y, layer, scales=SCALES)
    errors, cosine = scaled_by_hand(model, x, y, layer, seed=11)
    assert got.errors == pytest.approx(errors, rel=1e-8)
    assert got.cosine == pytest.approx(cosine, rel=1e-8)
    assert min(errors) > 1e-6
    assert len(set(got.errors)) == 3


def exactly_normalised(norm="batch"):
    model = make("small_vgg", norm)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-300  # torch refuses 0; beside any variance this is nothing
    return model


def test_in_a_network_with_exact_norms_scaling_does_nothing():
    model, (x, y) = exactly_normalised(), images()
    layers = normalised_weights(model, x)
    assert len(layers) == 2
    for layer in layers:
        got = weight_scaling(model, x, y, layer, scales=(1e-3, 10.0, 1e3))
        assert max(got.errors) < 1e-11
        assert got.cosine < 1e-12
        plain = weight_scaling(make("small_vgg", "none"), x, y, layer, scales=(1e-3, 10.0, 1e3))
        assert min(plain.errors) > 0.1
        assert plain.cosine > 0.01
    classifier = weight_scaling(model, x, y, "classifier", scales=(10.0,))
    assert classifier.errors[0] > 1, "behind which there is no norm"


class Faulty(nn.Module):
    """Fails at its third pass, if told to."""

    def __init__(self):
        super().__init__()
        self.calls = -math.inf

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise ArithmeticError("in the middle")
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_scaling_leaves_the_network_as_it_was(fails):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    net = net.append(Faulty()).double()
    x, y = images()
    net(x.flatten(1)).sum().backward()
    net.eval()
    gradients = [p.grad.clone() for p in net.parameters()]
    before, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    if fails:
        net[4].calls = 0
        with pytest.raises(ArithmeticError, match="in the middle"):
            weight_scaling(net, x.flatten(1), y, "0", scales=(10.0, 100.0))
    else:
        weight_scaling(net, x.flatten(1), y, "0", scales=(10.0, 100.0))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module.training for module in net.modules())
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


class Undecided(nn.Linear):
    """Two logits that are always the same: no gradient reaches the weight."""

    def forward(self, x):
        return super().forward(x).expand(-1, 2)


def test_an_error_that_is_no_number_is_told():
    model, x = nn.Sequential(Undecided(3, 1)).double(), torch.randn(8, 3, dtype=torch.float64)
    reading = weight_scaling(model, x, torch.arange(8) % 2, "0", scales=(2.0,))
    assert math.isnan(reading.errors[0]), "not that of the logits, which is a number"


def test_scaling_a_layer_that_is_not_there():
    model, (x, y) = make("mlp", "batch"), images()
    with pytest.raises(KeyError, match="no_such_layer"):
        weight_scaling(model, x, y, "no_such_layer", scales=(2.0,))
