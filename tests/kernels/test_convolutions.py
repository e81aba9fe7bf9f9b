"""Depthwise and 1x1 convolutions beside torch's, in float64."""

from __future__ import annotations

import pytest
import torch
from cases import apart, last, same_on_any_number_of_threads
from torch.nn import functional as F

from spiritlevel.kernels.convolutions import depthwise, pointwise

DEPTHWISE = [
    # N, C, H, W, kernel, stride, padding
    ((2, 8, 7, 9), (3, 3), (2, 2), (1, 1)),
    ((3, 45, 8, 8), (5, 5), (2, 2), (2, 2)),
    ((2, 20, 12, 14), (3, 3), (2, 2), (1, 1)),
    ((3, 29, 13, 11), (3, 3), (2, 2), (1, 1)),
    ((2, 20, 12, 14), (5, 5), (2, 2), (2, 2)),
    ((18, 29, 13, 11), (5, 5), (2, 2), (2, 2)),
    ((2, 300, 16, 15), (5, 5), (2, 2), (2, 2)),
    ((2, 16, 1, 20), (5, 5), (2, 2), (2, 2)),
    ((2, 16, 20, 4), (3, 3), (2, 2), (1, 1)),
    ((2, 16, 9, 9), (3, 3), (2, 2), (0, 0)),
    ((17, 6, 2, 2), (5, 5), (2, 2), (2, 2)),
    ((2, 12, 6, 5), (1, 5), (1, 1), (0, 2)),
    ((2, 12, 6, 5), (5, 1), (1, 1), (2, 0)),
    ((1, 70, 9, 10), (3, 3), (1, 1), (1, 1)),
    ((2, 3, 11, 4), (7, 7), (3, 2), (3, 3)),
    ((2, 4, 6, 6), (2, 3), (2, 1), (0, 0)),
    ((1, 1, 1, 1), (3, 3), (2, 2), (1, 1)),
]


def drawn(shape, kernel, kind=torch.float32):
    torch.manual_seed(0)
    return last(torch.randn(shape)).to(kind), torch.randn(kernel) / 3


def both(ours, theirs, x, weight):
    """Outputs, gradients of x and weight; of torch in float64."""
    return run(ours, x, weight), run(theirs, x.double(), weight.double(), x.dtype)


def run(convolved, x, weight, kind=None):
    a, w = (t.detach().requires_grad_() for t in (x, weight))
    y = convolved(a, w)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(kind or x.dtype).to(y.dtype))
    return y.detach(), a.grad, w.grad


@pytest.mark.parametrize(("kind", "off"), [(torch.float32, 2e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_depthwise_is_torchs(case, kind, off):
    shape, kernel, stride, padding = case
    x, weight = drawn(shape, (shape[1], 1, *kernel), kind)
    ours, theirs = both(
        lambda x, w: depthwise(x, w, stride, padding),
        lambda x, w: F.conv2d(x, w, None, stride, padding, 1, shape[1]),
        *(x, weight),
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert apart(one, other) < off
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kind", "off"), [(torch.float32, 2e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 33, 1, 1), (5, 3, 16, 16)], ids=str)
def test_pointwise_is_torchs(shape, kind, off):
    x, weight = drawn(shape, (21, shape[1], 1, 1), kind)
    for one, other in zip(*both(pointwise, F.conv2d, x, weight), strict=True):
        assert apart(one, other) < off


def strided(x, weight):
    return depthwise(x, weight, (2, 2), (1, 1))


@pytest.mark.parametrize("ours", [strided, pointwise])
def test_twice_differentiable(ours):
    x, weight = drawn((2, 4, 5, 5), (4, 1, 3, 3) if ours is strided else (4, 4, 1, 1))
    theirs = (lambda x, w: F.conv2d(x, w, None, 2, 1, 1, 4)) if ours is strided else F.conv2d
    found = []
    for each in ours, theirs:
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        (grad,) = torch.autograd.grad(each(a, w).square().sum(), a, create_graph=True)
        grad.square().sum().backward()
        found.append((a.grad, w.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ours", [strided, pointwise])
def test_the_same_bits_on_any_number_of_threads(ours):
    x, weight = drawn((9, 40, 12, 12), (40, 1, 3, 3) if ours is strided else (40, 40, 1, 1))
    assert same_on_any_number_of_threads(lambda: run(ours, x, weight))


def test_what_is_not_wanted_is_not_made():
    x, weight = drawn((2, 4, 5, 5), (4, 1, 3, 3))
    weight.requires_grad_()
    strided(x, weight).sum().backward()
    assert weight.grad.abs().sum() > 0
    x.requires_grad_()
    strided(x, weight.detach()).sum().backward()
    assert x.grad.abs().sum() > 0


def test_gradients_of_many_outputs_at_once():
    x, weight = drawn((2, 4, 5, 5), (4, 1, 3, 3))
    x.requires_grad_()
    y = strided(x, weight)
    many = torch.eye(3)[:, :, None, None, None].expand(3, 3, 4, 3, 3)[:, :2]
    (found,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    for one, grad in zip(found, many, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(y, x, grad, retain_graph=True)[0])
