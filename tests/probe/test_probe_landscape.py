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
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from spiritlevel.kernels.reference import batch_norm
from spiritlevel.probe import along_gradient

SEED = 5


def walk(loss_at, gradient_at, w, steps):
    """(loss range, gradient change, beta) over w - eta g, all parameters as one vector."""
    g = gradient_at(w)
    losses, changes, betas = [], [], []
    for eta in steps:
        there = w - eta * g
        losses.append(loss_at(there))
        changes.append(np.linalg.norm(gradient_at(there) - g))
        betas.append(changes[-1] / np.linalg.norm(there - w))
    return max(losses) - min(losses), max(changes), max(betas)


def at_vector(model, x, y):
    """The loss, and its gradient by backward(), as functions of all parameters as one vector."""
    model = copy.deepcopy(model).train()

    def loss(w):
        vector_to_parameters(torch.from_numpy(w), model.parameters())
        torch.manual_seed(SEED)
        return cross_entropy(model(x), y)

    def gradient(w):
        model.zero_grad()
        loss(w).backward()
        return parameters_to_vector([p.grad for p in model.parameters()]).numpy()

    start = parameters_to_vector(model.parameters()).detach().numpy().copy()
    return (lambda w: loss(w).item()), gradient, start


def finite_differences(loss, w, h=1e-5):
    gradient = np.empty_like(w)
    for i in range(len(w)):
        step = np.zeros_like(w)
        step[i] = h
        gradient[i] = (loss(w + step) - loss(w - step)) / (2 * h)
    return gradient


def read(reading):
    return reading.loss_range, reading.gradient_change, reading.beta


@pytest.mark.parametrize("steps", [(0.05, 0.1, 0.2, 0.4), (3.0,), (4.0, 0.5)], ids=str)
@pytest.mark.parametrize("norm", ["none", "batch", "group:1", "noisy-batch"])
@pytest.mark.parametrize("name", ["mlp", "small_vgg"])
def test_it_is_the_walk(name, norm, steps):
    model, (x, y) = make(name, norm), images()
    torch.manual_seed(SEED)
    got = along_gradient(model, x, y, steps=steps)
    assert read(got) == pytest.approx(walk(*at_vector(model, x, y), steps), rel=1e-8)
    assert (got.loss_range == 0) == (len(steps) == 1)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_so_it_is_without_any_autograd(norm):
    model, (x, y) = make("mlp", norm, width=3, activation="tanh"), images()
    loss, _, start = at_vector(model, x, y)
    with torch.no_grad():
        expected = walk(loss, lambda w: finite_differences(loss, w), start, (0.1, 0.4))
    got = along_gradient(model, x, y, steps=(0.1, 0.4))
    assert read(got) == pytest.approx(expected, rel=1e-5)


def test_each_figure_is_the_worst_of_the_single_steps():
    model, (x, y) = make("mlp", "batch"), images()
    steps = (0.5, 8.0, 1.0)
    singles = [along_gradient(model, x, y, steps=[eta]) for eta in steps]
    got = along_gradient(model, x, y, steps=steps)
    assert got.gradient_change == max(s.gradient_change for s in singles)
    assert got.beta == max(s.beta for s in singles)


def test_weight_norm_is_that_of_the_weights_alone():
    model, (x, y) = make("small_vgg", "batch"), images()
    weights = [*(stage[0].conv for stage in model.stages), model.classifier]
    expected = sum(v**2 for w in weights for v in w.weight.flatten().tolist())
    assert along_gradient(model, x, y, steps=[8.0]).weight_norm2 == pytest.approx(expected)


class ScaleInvariant(nn.Module):
    """Weights only, each behind an exact batch norm: scaled weights make the same function."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(n, m, bias=False) for n, m in [(16, 6), (6, 3)])

    def forward(self, x):
        features = batch_norm(self.first(x.flatten(1)), eps=0).tanh()
        return batch_norm(self.second(features), eps=0)


@settings(max_examples=25, deadline=None)
@given(a=st.floats(0.01, 100))
def test_beta_times_the_squared_norm_forgets_the_scale_of_the_weights(a):
    torch.manual_seed(0)
    model, (x, y) = ScaleInvariant().double(), images()
    steps = (0.5, 1.0, 2.0)
    base = along_gradient(model, x, y, steps=steps)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(a)
    scaled = along_gradient(model, x, y, steps=[a**2 * eta for eta in steps])
    assert scaled.loss_range == pytest.approx(base.loss_range, rel=1e-8)
    assert scaled.gradient_change * a == pytest.approx(base.gradient_change, rel=1e-8)
    assert scaled.beta * a**2 == pytest.approx(base.beta, rel=1e-8)
    assert scaled.beta * scaled.weight_norm2 == pytest.approx(
        base.beta * base.weight_norm2, rel=1e-8
    )


def test_on_a_parabola_beta_is_its_curvature():
    """Cross-entropy of two classes, logits 0: its second derivative is p (1 - p) in z0 - z1."""
    net = nn.Linear(1, 2, bias=False).double()
    nn.init.zeros_(net.weight)
    x, y = torch.ones(2, 1).double(), torch.tensor([0, 0])
    # The gradient is (-1/2, 1/2); along it z0 - z1 moves sqrt(2) as far as w: 2 p (1 - p).
    assert along_gradient(net, x, y, steps=[1e-4]).beta == pytest.approx(0.5, rel=1e-3)


def test_at_a_standstill_nothing_changes():
    """Both classes for the same input and logits 0: the gradient is zero."""
    net = nn.Linear(2, 2).double()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    got = along_gradient(net, double(1, 2).expand(2, 2), torch.tensor([0, 1]), steps=(1.0, 2.0))
    assert read(got) == (0, 0, 0)


def make_fragile(nan=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    if nan:
        nn.init.constant_(net[0].weight, math.nan)
    return net, torch.randn(8, 6), torch.arange(8) % 3


def test_a_step_that_overflows_is_infinite():
    net, x, y = make_fragile()
    assert read(along_gradient(net, x, y, steps=(0.1, 1e38))) == (math.inf,) * 3


@pytest.mark.parametrize(("nan", "steps"), [(False, (1e38, 0.1)), (False, (1e38,)), (True, (0.1,))])
def test_wherever_it_overflows(nan, steps):
    net, x, y = make_fragile(nan)
    assert read(along_gradient(net, x, y, steps=steps)) == (math.inf,) * 3


def test_the_loss_is_torchs():
    model, (x, y) = make("mlp", "none"), images()
    loss, _, start = at_vector(model, x, y)
    assert loss(start) == pytest.approx(F.cross_entropy(model(x), y).item())
