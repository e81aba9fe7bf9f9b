"""fold: right in every combination, or the layer that stays is named."""

from __future__ import annotations

import copy

import pytest
import torch
from fold_cases import AHEAD, CONV, CONVS, IMAGES, RIGHT, STAYS, lived, net
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import spiritlevel as sl
from spiritlevel.surgery.in_eval import is_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*lazy.*:UserWarning")


def norms(model):
    return [path for path, module in model.named_modules() if is_norm(module)]


def left(model):
    return {entry.paths: entry.why for entry in model.spiritlevel_log if entry.action == "left"}


def same(model, folded, x):
    """In float64 the algebra alone is seen."""
    wide = sl.fold(copy.deepcopy(model).double(), x.double())
    expected = copy.deepcopy(model).double().eval()(x.double())
    assert (wide(x.double()) - expected).abs().max() <= 1e-12 * expected.abs().max()
    y = model.eval()(x)
    assert (folded(x) - y).abs().max() <= 1e-5 * y.abs().max()


@pytest.mark.parametrize("name", CONVS)
def test_a_norm_goes_into_the_layer_before_it(name):
    layer, norm, shape = CONVS[name]
    model, x = lived(nn.Sequential(layer, norm)), torch.randn(shape)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    assert left(folded) == {}
    same(model, folded, x)
    if type(norm) is nn.BatchNorm2d and norm.bias is not None and type(layer) is nn.Conv2d:
        torchs = fuse_conv_bn_eval(layer, norm)
        assert torch.allclose(folded[0].weight, torchs.weight, rtol=1e-5, atol=1e-6)
        assert torch.allclose(folded[0].bias, torchs.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", AHEAD)
def test_a_norm_goes_into_the_layer_after_it(name):
    norm, layer, shape = AHEAD[name]
    model, x = lived(nn.Sequential(norm, layer)), torch.randn(shape)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    same(model, folded, x)


def test_a_norm_that_only_scales_goes_into_what_pads_with_zeros():
    norm = lived(nn.BatchNorm2d(6, affine=False))
    norm.running_mean.zero_()
    for layer in (
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1, groups=2),
    ):
        model, x = nn.Sequential(norm, layer).eval(), torch.randn(2, 6, 5, 5)
        folded = sl.fold(model, x)
        assert norms(folded) == []
        same(model, folded, x)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), "1 follows it: it pads with zeros, which are not shifted"),
        (nn.Conv2d(6, 8, 3, padding="same"), "it pads with zeros"),
        (nn.ConvTranspose2d(6, 8, 3), "it is transposed"),
        (nn.ReLU(), "1 follows it"),
    ],
)
def test_where_the_shift_would_miss_the_padding_the_norm_stays(layer, why):
    model, x = lived(nn.Sequential(nn.BatchNorm2d(6), layer)), torch.randn(2, 6, 5, 5)
    folded = sl.fold(model, x)
    assert norms(folded) == ["0"]
    assert why in left(folded)["0",]
    assert torch.equal(folded(x), model(x))


@pytest.mark.parametrize("name", RIGHT)
def test_what_only_moves_or_averages_may_lie_between(name):
    layers, shape = RIGHT[name]
    model, x = net(name, layers), torch.randn(shape)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    same(model, folded, x)
    other = torch.randn(5, *shape[1:])
    y = model(other)
    assert (folded(other) - y).abs().max() <= 1e-5 * y.abs().max()


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_be_merged_stays_and_is_named(name):
    layers, shape, why = STAYS[name]
    model, x = net(name, layers), torch.randn(shape)
    folded = sl.fold(model, x)
    assert any(why in each for each in left(folded).values()), left(folded)
    assert ("bn",) in left(folded)
    assert torch.equal(folded(x), model(x))


def test_a_function_that_normalizes_is_named():
    model = net("functional", CONV)
    log = left(sl.fold(model, torch.randn(IMAGES)))
    assert log["",] == "1 calls of a batch norm function, which is no module"
