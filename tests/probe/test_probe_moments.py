import math

import numpy as np
import pytest
import torch
from by_hand import NORMS, double, forward, images, make, normalise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spiritlevel.probe import input_moments, unit_percentiles
from spiritlevel.probe.moments import MOST_VALUES

MODELS = ["mlp", "small_vgg"]


def moments_by_hand(x):
    """Sums without rounding, over a list."""
    values = x.double().flatten().tolist()
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def percentiles_by_hand(x):
    """Unit by unit, image by image."""
    by_unit = []
    for unit in range(x.shape[1]):
        values = [float(v) for image in x for v in image[unit].flatten()]
        by_unit.append(np.percentile(values, [15, 50, 85]))
    return np.stack(by_unit, axis=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_of_each_layers_input(name, norm, training):
    model, (x, _) = make(name, norm), images()
    got = input_moments(model, x, training=training)
    inputs, _ = forward(model.train(training), x)
    assert list(got) == list(inputs)
    for layer, values in inputs.items():
        assert got[layer] == pytest.approx(moments_by_hand(values.detach()), rel=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_percentiles_are_those_of_each_unit(name, norm, training):
    model, (x, _) = make(name, norm), images()
    got = unit_percentiles(model, x, training=training)
    inputs, _ = forward(model.train(training), x)
    assert list(got) == list(inputs)
    for layer, values in inputs.items():
        expected = percentiles_by_hand(values.detach())
        assert got[layer].shape == (3, values.shape[1])
        np.testing.assert_allclose(got[layer], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_percentiles_of_what_comes_out(norm, training):
    """Of the norm, and of the place where there is none."""
    model, (x, _) = make("mlp", norm), images()
    places = [f"hidden.{i}.norm" for i in range(2)]
    got = unit_percentiles(model, x, layers=places, training=training, outputs=True)
    inputs, _ = forward(model.train(training), x)
    assert list(got) == places
    for i, layer in enumerate(model.hidden):
        fed = inputs[f"hidden.{i}.linear"]
        z = fed @ layer.linear.weight.T + layer.linear.bias
        expected = percentiles_by_hand(normalise(z, layer.norm).detach())
        np.testing.assert_allclose(got[places[i]], expected, rtol=1e-10, atol=1e-12)
        fed_to_it = unit_percentiles(model, x, layers=places, training=training)
        np.testing.assert_allclose(
            fed_to_it[places[i]], percentiles_by_hand(z.detach()), rtol=1e-10, atol=1e-12
        )


def test_what_comes_out_is_read_before_it_is_overwritten():
    net, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True)).double(), double(9, 3)
    got = unit_percentiles(net, x, layers=["0"], outputs=True)["0"]
    np.testing.assert_allclose(got, percentiles_by_hand(net[0](x).detach()), rtol=1e-12)
    assert got.min() < 0


@pytest.mark.parametrize("n", [MOST_VALUES - 1, MOST_VALUES])
def test_up_to_the_bound_every_value_counts(n):
    x = double(n, 3)
    got = unit_percentiles(ONE_LAYER, x.float())["0"]
    np.testing.assert_allclose(got, np.percentile(x.numpy(), [15, 50, 85], axis=0), atol=1e-6)


@pytest.mark.parametrize("shape", [(3 * MOST_VALUES + 5, 2), (100, 2, 19, 17), (300, 2, 11, 13)])
def test_beyond_it_some_stand_for_all(shape):
    """Two units, of deviation 1 and 5: a percentile of 8,192 values is off by about 1.7 %."""
    x = double(*shape) * torch.tensor([1.0, 5.0]).view(1, 2, *[1] * (len(shape) - 2))
    got = unit_percentiles(nn.Sequential(nn.Identity()), x, layers=["0"])["0"]
    exact = percentiles_by_hand(x)
    assert (np.abs(got.numpy() - exact) < 0.06 * np.array([1, 5])).all()
    assert not np.allclose(got, exact, rtol=0, atol=1e-9)


def test_any_module_can_be_asked_for():
    model, (x, _) = make("mlp", "batch"), images()
    with torch.no_grad():
        for layer in model.hidden:
            layer.norm.weight.fill_(2)
            layer.norm.bias.fill_(-3)
    got = input_moments(model, x, layers=["hidden.1.act", "hidden.0.act"])
    assert list(got) == ["hidden.0.act", "hidden.1.act"]
    for moments in got.values():  # behind a norm they are its bias and its weight
        assert moments == pytest.approx((-3, 2), rel=1e-3)
    assert unit_percentiles(model, x, layers=[]) == {}


@pytest.mark.parametrize("read", [input_moments, unit_percentiles])
def test_a_name_that_is_not_there(read):
    model = make("mlp", "batch")
    with pytest.raises(KeyError, match="no_such_layer"):
        read(model, images()[0], layers=["classifier", "no_such_layer"])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("read", [input_moments, unit_percentiles])
def test_no_hook_is_left_behind(read):
    model = make("mlp", "batch")
    read(model, images()[0])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        read(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 5))
    assert not any(module._forward_pre_hooks for module in model.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(self.inner(x) + 100)


def test_a_module_that_is_called_twice_is_read_at_its_last_call():
    model, x = Twice(), torch.randn(8, 4)
    with torch.no_grad():
        second = model.inner(x) + 100
    assert input_moments(model, x)["inner"] == pytest.approx(moments_by_hand(second), rel=1e-6)
    np.testing.assert_allclose(
        unit_percentiles(model, x)["inner"], percentiles_by_hand(second), rtol=1e-6
    )


ONE_LAYER = nn.Sequential(nn.Linear(3, 2))

EDGES = {
    "mean far above the deviation": (double(50, 3) * 0.1 + 1e4).float(),
    "one image": double(1, 3).float(),
    "no variance": torch.full((5, 3), 0.1),
    "strided": double(12, 6).float()[::2, ::2],
    "transposed": double(3, 7).float().T,
    "more axes": double(2, 5, 3).float(),
}


@pytest.mark.parametrize("x", EDGES.values(), ids=EDGES.keys())
def test_edges(x):
    mean, std = input_moments(ONE_LAYER, x)["0"]
    expected_mean, expected_std = moments_by_hand(x)
    assert mean == pytest.approx(expected_mean, rel=1e-12)
    assert std == pytest.approx(expected_std, rel=1e-7, abs=1e-15)
    percentiles = unit_percentiles(ONE_LAYER, x)["0"]
    # Two units in the last place of float32; a rank of 0.85 (n - 1) is rounded too.
    np.testing.assert_allclose(percentiles, percentiles_by_hand(x), rtol=2.4e-7, atol=1e-6)


def test_one_channel():
    conv, x = nn.Sequential(nn.Conv2d(1, 1, 1)), double(3, 1, 2, 5).float()
    got = unit_percentiles(conv, x)["0"]
    assert got.shape == (3, 1)
    np.testing.assert_allclose(got, percentiles_by_hand(x), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), order=st.permutations(range(7)))
def test_they_move_with_the_data_and_forget_its_order(scale, shift, order):
    net, x = ONE_LAYER.double(), double(7, 3)
    (mean, std), percentiles = input_moments(net, x)["0"], unit_percentiles(net, x)["0"]
    moved = (scale * x + shift)[list(order)]
    assert input_moments(net, moved)["0"] == pytest.approx(
        (scale * mean + shift, scale * std), rel=1e-6, abs=1e-9
    )
    torch.testing.assert_close(unit_percentiles(net, moved)["0"], scale * percentiles + shift)


def test_the_values_that_stand_for_all_are_not_one_column_of_the_images():
    x = torch.randn(256, 1, 32, 32, dtype=torch.float64)
    x[..., 0] += 5  # the left border, as zero padding makes it differ
    got = unit_percentiles(nn.Sequential(nn.Identity()), x, layers=["0"])["0"][:, 0]
    exact = x.flatten().quantile(torch.tensor([0.15, 0.5, 0.85], dtype=x.dtype))
    assert (got - exact).abs().max() < 0.06
