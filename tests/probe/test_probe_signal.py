import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from by_hand import NORMS, cross_entropy, forward, images, make
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spiritlevel.probe import growth_per_layer, signal_by_depth


def signal_by_hand(model, x, y):
    """The hand-written forward pass, gradients kept on the way, and one backward()."""
    inputs, logits = forward(model, x)
    inner = {name: t for name, t in inputs.items() if t.requires_grad}
    for tensor in inner.values():
        tensor.retain_grad()
    model.zero_grad()
    loss = cross_entropy(logits, y)
    loss.backward()
    modules = dict(model.named_modules())
    return {
        "std": [np.std(t.detach().numpy()) for t in inputs.values()],
        "weight": [np.linalg.norm(modules[name].weight.grad.numpy()) for name in inputs],
        "input": [np.linalg.norm(t.grad.numpy()) for t in inner.values()],
        "loss": loss.item(),
    }


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["mlp", "small_vgg"])
def test_it_is_one_forward_and_one_backward_pass(name, norm):
    model, (x, y) = make(name, norm), images()
    got = signal_by_depth(model.eval(), x, y)  # training mode is its own affair
    expected = signal_by_hand(model.train(), x, y)
    assert got.layers == tuple(forward(model, x)[0])
    assert got.activation_std == pytest.approx(expected["std"], rel=1e-10)
    assert got.weight_gradient == pytest.approx(expected["weight"], rel=1e-10)
    assert math.isnan(got.input_gradient[0])
    assert got.input_gradient[1:] == pytest.approx(expected["input"], rel=1e-10)
    assert got.loss == pytest.approx(expected["loss"], rel=1e-12)


def test_three_linear_layers_in_numpy():
    """Back-propagation written out: dL/dz = (softmax - onehot) / N, then through each weight."""
    torch.manual_seed(0)
    sizes = [6, 5, 4, 3]
    net = nn.Sequential(*(nn.Linear(n, m, bias=False) for n, m in pairwise(sizes)))
    x, y = torch.randn(7, 6), np.arange(7) % 3
    w1, w2, w3 = (layer.weight.detach().double().numpy() for layer in net)
    a0 = x.double().numpy()
    a1, a2 = a0 @ w1.T, a0 @ w1.T @ w2.T
    z = a2 @ w3.T
    softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    dz = (softmax - np.eye(3)[y]) / 7
    da2, da1 = dz @ w3, dz @ w3 @ w2
    got = signal_by_depth(net, x, torch.from_numpy(y))
    norms = [np.linalg.norm(m) for m in (da1.T @ a0, da2.T @ a1, dz.T @ a2)]
    assert got.weight_gradient == pytest.approx(norms, rel=1e-5)
    assert got.input_gradient[1:] == pytest.approx(
        [np.linalg.norm(da1), np.linalg.norm(da2)], rel=1e-5
    )
    assert got.activation_std == pytest.approx([a0.std(), a1.std(), a2.std()], rel=1e-6)
    assert got.loss == pytest.approx(-np.log(softmax[range(7), y]).mean(), rel=1e-6)


class Backwards(nn.Module):
    """Registers last what it calls first, and calls one layer twice."""

    def __init__(self):
        super().__init__()
        self.last, self.twice = nn.Linear(4, 3), nn.Linear(4, 4)
        self.unused, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.twice(self.twice(self.first(x)) * 100))


def test_layers_come_in_the_order_of_the_forward_pass_each_at_its_first_call():
    torch.manual_seed(0)
    model, x, y = Backwards(), torch.randn(6, 4), torch.arange(6) % 3
    got = signal_by_depth(model, x, y)
    assert got.layers == ("first", "twice", "last")
    with torch.no_grad():
        assert got.activation_std[1] == pytest.approx(np.std(model.first(x).numpy()), rel=1e-6)
    cross_entropy(model(x), y).backward()
    expected = [np.linalg.norm(m.weight.grad) for m in (model.first, model.twice, model.last)]
    assert got.weight_gradient == pytest.approx(expected, rel=1e-5)


def test_an_image_that_asks_for_its_gradient_gets_it():
    model, (x, y) = make("mlp", "batch"), images()
    x.requires_grad_()
    got = signal_by_depth(model, x, y)
    cross_entropy(model(x), y).backward()
    assert got.input_gradient[0] == pytest.approx(np.linalg.norm(x.grad.numpy()), rel=1e-8)


def test_a_norm_forgets_the_scale_of_the_weights():
    def last_std(norm, scale):
        model = make("mlp", norm)
        with torch.no_grad():
            for layer in model.hidden:
                for parameter in layer.linear.parameters():
                    parameter.mul_(scale)
        return signal_by_depth(model, *images()).activation_std[-1]

    assert last_std("batch", 100) == pytest.approx(last_std("batch", 1), rel=1e-3)
    assert last_std("none", 100) > 1000 * last_std("none", 1)


@given(
    start=st.floats(1e-30, 1e30),
    factor=st.floats(0.2, 5),
    length=st.integers(2, 40),
    ends=st.tuples(*[st.floats()] * 3),
)
def test_the_growth_of_a_geometric_sequence_is_its_factor(start, factor, length, ends):
    """Whatever the first two layers and the last do."""
    *first, last = ends
    middle = [start * factor**i for i in range(length)]
    assert growth_per_layer([*first, *middle, last]) == pytest.approx(factor, rel=1e-9)


@given(st.lists(st.floats(1e-6, 1e6), min_size=4, max_size=20))
def test_the_growth_is_the_slope_of_the_logarithms(values):
    slope, _ = np.polyfit(range(len(values) - 1), np.log(values[:-1]), 1)
    assert growth_per_layer(values, skip=0) == pytest.approx(math.exp(slope), rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [2, 3, 4])
def test_no_growth_where_a_value_is_no_size(bad, position):
    values = [1.0] * 6
    values[position] = bad
    assert growth_per_layer(values) is None


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0, 4.0]])
def test_no_growth_of_fewer_than_two(values):
    assert growth_per_layer(values) is None
