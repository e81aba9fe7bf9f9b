"""A 1x1 convolution with its batch norm's statistics, and back, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from cases import apart, same_on_any_number_of_threads
from torch.nn import functional as F

from spiritlevel.kernels.ghost import Norm, product, product_back

SHAPES = [((2, 3, 5, 7), 5), ((4, 40, 9, 9), 37), ((3, 16, 30, 30), 8), ((2, 130, 4, 4), 24)]
SHAPES += [((5, 1, 2, 2), 1), ((2, 7, 1, 6), 20), ((40, 24, 28, 28), 36), ((32, 96, 7, 7), 64)]


def given(shape, channels, dtype):
    draw = torch.Generator().manual_seed(channels)
    x = torch.randn(shape, generator=draw) + 2
    weight = torch.randn((channels, shape[1], 1, 1), generator=draw) / shape[1] ** 0.5
    scale, bias = torch.randn((2, channels), generator=draw)
    grad = torch.randn((shape[0], channels, *shape[2:]), generator=draw)
    x, grad = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, grad))
    return x, weight, scale, bias, grad


def both(shape, channels, dtype=torch.float32, wanted=True):
    """Ours and, in float64, torch's: the product, its moments, running ones, and gradients."""
    x, weight, scale, bias, grad = given(shape, channels, dtype)
    exact = [t.double().requires_grad_() for t in (x, weight, scale, bias)]
    running = [torch.zeros(channels).double() for _ in range(2)]
    there = F.conv2d(exact[0], exact[1])
    there.retain_grad()
    F.batch_norm(there, *running, exact[2], exact[3], True, 0.1).backward(grad.double())
    count = grad.numel() / channels
    follow = [torch.zeros(channels) for _ in range(2)]
    norm = Norm(scale, bias, 1e-5, (*follow, 0.1, count / (count - 1)))
    y, moments = product(x, weight, norm)
    of_norm = exact[2].grad.float(), exact[3].grad.float()
    back = product_back(grad, x, weight, y, norm, moments, of_norm, wanted)
    known = there.detach()
    wide = [axis for axis in range(4) if axis != 1]
    var, mean = torch.var_mean(known, wide, correction=0)
    ours = [y, *moments, *follow, *back]
    return ours, [known, mean, var, *running, exact[0].grad, exact[1].grad]


@pytest.mark.parametrize(("shape", "channels"), SHAPES, ids=str)
def test_the_same_as_torch_in_float64(shape, channels):
    for number, (one, other) in enumerate(zip(*both(shape, channels), strict=True)):
        assert apart(one, other) < 5e-6, number


def test_in_bfloat16_each_number_is_rounded_once():
    ours, exact = both((8, 24, 10, 10), 36, torch.bfloat16)
    assert ours[0].dtype is ours[-2].dtype is torch.bfloat16
    assert ours[-1].dtype is torch.float32
    for one, other in zip(ours, exact, strict=True):
        assert apart(one, other) < 2**-6


def test_a_gradient_that_nobody_wants_is_not_made():
    ours, exact = both((4, 12, 6, 6), 8, wanted=False)
    assert ours[-2] is None
    assert apart(ours[-1], exact[-1]) < 5e-6


def test_the_same_bits_on_any_number_of_threads():
    assert same_on_any_number_of_threads(lambda: both((9, 40, 14, 14), 60)[0])


def test_a_mean_far_from_zero_costs_no_digit_of_the_variance():
    x, weight, scale, bias, _ = given((8, 16, 12, 12), 8, torch.float32)
    x = (x + 3000).contiguous(memory_format=torch.channels_last)
    y, (_, var) = product(x, weight, Norm(scale, bias, 1e-5))
    exact = y.double().var((0, 2, 3), correction=0)
    assert ((var - exact).abs() / exact).max().item() < 1e-5
