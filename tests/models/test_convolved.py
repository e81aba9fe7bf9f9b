"""When convolutions and linear layers of models in training are others than torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from behind import last
from torch import nn

import spiritlevel as sl
from spiritlevel.models import convolved as module
from spiritlevel.models.convolved import chained, convolved


@pytest.fixture
def no_bfloat16(monkeypatch):
    """As on a processor whose instructions know no bfloat16."""
    monkeypatch.setattr(module, "_has_bfloat16", lambda: False)


def made_by(y):
    """What made it, but for a change of type or shape."""
    node, passed = y.grad_fn, ("ToCopy", "View", "Slice", "Unsqueeze")
    while type(node).__name__.startswith(passed):
        node = node.next_functions[0][0]
    return type(node).__name__


def strided(side=4, **options):
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 12, 5, 2, 2, groups=12, bias=False, **options)
    return conv, last(torch.randn(3, 12, side, side))


def test_depthwise_that_halve_a_map_are_ours():
    conv, x = strided(64)
    assert made_by(convolved(conv, x)) == "_DepthwiseBackward"
    torch.testing.assert_close(convolved(conv, x), conv(x))


@pytest.mark.parametrize("change", [{"stride": (1, 1)}, {"padding": (1, 1)}, {"stride": (2, 1)}])
def test_other_depthwise_of_small_maps_are_ours_and_of_large_ones_torchs(change):
    conv, x = strided()
    for name, value in change.items():
        setattr(conv, name, value)
    assert made_by(convolved(conv, x)) == "_DepthwiseBackward"
    torch.testing.assert_close(convolved(conv, x), conv(x))
    assert made_by(convolved(conv, last(torch.randn(1, 12, 64, 64)))) == "ConvolutionBackward0"


@pytest.mark.parametrize(
    "change",
    [
        lambda conv, x: (conv.eval(), x),
        lambda conv, x: (conv.double(), x.double()),
        lambda conv, x: (conv, x.contiguous()),
        lambda conv, x: (strided(padding_mode="reflect")[0], x),
    ],
    ids=["eval", "float64", "contiguous", "reflected"],
)
def test_others_are_torchs(change):
    conv, x = change(*strided())
    y = convolved(conv, x)
    assert made_by(y) == "ConvolutionBackward0"
    assert torch.equal(y, conv(x))


def test_a_hook_on_a_convolution_or_around_it_is_called():
    (conv, x), called = strided(), []
    conv.register_forward_hook(lambda *_: called.append("conv"))
    convolved(conv, x)
    whole = nn.Sequential(strided()[0], nn.Identity())
    assert made_by(chained(whole, x)) == "_DepthwiseBackward"
    whole.register_forward_hook(lambda *_: called.append("whole"))
    assert made_by(chained(whole, x)) == "ConvolutionBackward0"
    assert called == ["conv", "whole"]


def test_on_a_map_of_one_position_it_is_a_linear_layer():
    conv, x = nn.Conv2d(8, 6, 1), last(torch.randn(5, 8, 1, 1))
    y = convolved(conv, x)
    assert made_by(y) == "AddmmBackward0"
    torch.testing.assert_close(y, conv(x))
    padded = nn.Conv2d(8, 6, 1, padding=1)
    assert torch.equal(convolved(padded, x), padded(x))


CASES = {
    "pointwise": (lambda: nn.Conv2d(8, 6, 1, bias=False), (3, 8, 5, 5), "_PointwiseBackward"),
    "one position": (lambda: nn.Conv2d(8, 6, 1), (3, 8, 1, 1), "AddmmBackward0"),
    "dense": (lambda: nn.Conv2d(8, 6, 3, 2, 1), (3, 8, 5, 5), "_WidenedBackward"),
    "linear": (lambda: nn.Linear(8, 6), (3, 8), "AddmmBackward0"),
}


@pytest.mark.usefixtures("no_bfloat16")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bfloat16_is_kept_though_torchs_is_not_called(case):
    make, shape, maker = case
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    x = (last(x) if x.dim() == 4 else x).bfloat16().requires_grad_()
    twin, exact = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = convolved(layer, x)
    assert y.dtype is torch.bfloat16
    assert made_by(y) == maker
    y.sum().backward()
    twin(exact).sum().backward()
    assert x.grad.dtype is torch.bfloat16
    for one, other in (
        (y, twin(exact)),
        (x.grad, exact.grad),
        *((p.grad, q.grad) for p, q in zip(layer.parameters(), twin.parameters(), strict=True)),
    ):
        assert ((one.double() - other).norm() / other.norm()).item() < 0.01


def test_where_the_processor_has_bfloat16_torchs_run(monkeypatch):
    monkeypatch.setattr(module, "_has_bfloat16", lambda: True)
    conv, x = nn.Conv2d(8, 6, 3), last(torch.randn(2, 8, 5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert made_by(convolved(conv, x)) == "ConvolutionBackward0"


@pytest.mark.usefixtures("no_bfloat16")
def test_a_network_under_autocast_calls_no_convolution_of_torchs_in_bfloat16():
    torch.manual_seed(0)
    model, x = sl.create_model("ghostnet_050", 5, stem="cifar"), torch.randn(4, 3, 32, 32)
    with torch.profiler.profile() as seen, torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        y.float().square().sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert y.dtype is torch.bfloat16
    assert "_Halves" in names
    assert not [name for name in names if "slow_conv" in name]
    assert all(p.grad.isfinite().all() for p in model.parameters())
