import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.models.attention import SqueezeExcite
from spiritlevel.models.ghost import GhostBottleneck, GhostModule
from spiritlevel.models.layers import ConvNormAct, Layers, make_divisible

LAYERS = Layers(nn.BatchNorm2d)


def bottleneck(in_chs, out_chs, *, se=False, **options):
    return GhostBottleneck(in_chs, 16, out_chs, LAYERS, gate="hard" if se else "", **options)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, 4), (16, 16), (8.0, 8), (20.8, 20), (62.4, 64), (5.2, 8), (31.2, 32), (13.9, 16)],
)
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected


def test_the_cheap_half_is_made_from_the_finished_first_half():
    module = GhostModule(6, 8, LAYERS).eval()
    with torch.no_grad():
        for norm in (module.primary_conv[1], module.cheap_operation[1]):
            norm.running_mean.normal_()
            norm.bias.normal_()
    x = torch.randn(2, 6, 5, 7)
    conv, norm, _ = module.primary_conv
    first = F.relu(norm(F.conv2d(x, conv.weight)))
    conv, norm, _ = module.cheap_operation
    second = F.relu(norm(F.conv2d(first, conv.weight, padding=1, groups=4)))
    torch.testing.assert_close(module(x), torch.cat([first, second], 1))


def test_without_relu_the_output_has_both_signs():
    x = torch.randn(4, 6, 5, 5)
    assert (GhostModule(6, 8, LAYERS)(x) >= 0).all()
    linear = GhostModule(6, 8, LAYERS, act=False)(x)
    assert (linear.amin((0, 2, 3)) < 0).all()
    assert (linear.amax((0, 2, 3)) > 0).all()


def test_squeeze_excitation_scales_channels_between_nothing_and_all():
    layer, x = SqueezeExcite(16), torch.randn(2, 16, 3, 5)
    assert layer.conv_reduce.weight.shape == (4, 16, 1, 1)
    gate = layer(x) / x
    torch.testing.assert_close(gate, gate[:, :, :1, :1].expand_as(gate))
    with torch.no_grad():
        layer.conv_expand.bias.fill_(100)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.conv_expand.bias.fill_(-100)
    assert torch.equal(layer(x), torch.zeros_like(x))


@pytest.mark.parametrize("se", [False, True])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("stride", "out"), [(1, (7, 9)), (2, (4, 5))])
def test_bottleneck_shapes(stride, out, kernel, se):
    block = bottleneck(6, 8, stride=stride, se=se, kernel=kernel)
    assert block(torch.randn(2, 6, 7, 9)).shape == (2, 8, *out)


def test_the_shortcut_is_the_input_where_shapes_agree():
    x = torch.randn(2, 8, 5, 5)
    same, wider, strided = bottleneck(8, 8), bottleneck(8, 12), bottleneck(8, 8, stride=2)
    assert len(same.shortcut) == 0
    torch.testing.assert_close(same(x), same.ghost2(same.ghost1(x)) + x)
    assert len(wider.shortcut) == len(strided.shortcut) == 4


def test_conv_norm_act_and_bias():
    layer = ConvNormAct(3, 5, Layers(nn.Identity, bias=True))
    x = torch.randn(2, 3, 4, 4)
    expected = F.relu(F.conv2d(x, layer.conv.weight, layer.conv.bias))
    torch.testing.assert_close(layer(x), expected)
