"""Squeeze-excitation as one operation, against torch's in float64."""

import copy

import pytest
import torch
from cases import apart, default_type, last

from spiritlevel.kernels.squeeze import GATES, squeeze_excite
from spiritlevel.models.attention import SqueezeExcite

SHAPES = [(2, 12, 5, 7), (3, 37, 1, 1), (2, 72, 28, 28), (4, 5, 3, 33)]


def module_and_images(shape, gate, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    module = SqueezeExcite(shape[1], gate)
    with torch.no_grad():
        module.conv_expand.weight.mul_(8)  # so that some gates are shut, and some wide open
        module.conv_expand.bias.normal_()
    return module, last((torch.randn(shape) + 0.5).to(dtype)), last(torch.randn(shape).to(dtype))


def ours(module, x, grad):
    """Output and gradients, of copies."""
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = squeeze_excite(x, tuple(weights), module.gate)
    y.backward(grad)
    return [y.detach(), x.grad, *[w.grad for w in weights]]


def exactly(module, x, grad):
    module = copy.deepcopy(module).double()
    x = x.double().requires_grad_()
    y = module(x)
    y.backward(grad.double())
    return [y.detach(), x.grad, *[p.grad for p in module.parameters()]]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_as_torch_in_float64(shape, gate):
    given = module_and_images(shape, gate)
    for one, other in zip(ours(*given), exactly(*given), strict=True):
        assert one.shape == other.shape
        assert apart(one, other) < 2e-6


def test_in_bfloat16_each_number_is_rounded_once():
    given = module_and_images((2, 24, 9, 9), "hard", torch.bfloat16)
    found = ours(*given)
    assert found[0].dtype is found[1].dtype is torch.bfloat16
    for one, other in zip(found, exactly(*given), strict=True):
        assert apart(one, other) < 2**-7


def test_neither_autocast_nor_the_default_type_changes_its_own_arithmetic():
    given = module_and_images((2, 12, 6, 6), "hard")
    plain = ours(*given)
    with torch.autocast("cpu", torch.bfloat16):
        under = ours(*given)
    with default_type(torch.float64):
        other = ours(*given)
    for found in (under, other):
        assert all(map(torch.equal, found, plain))


def test_a_shut_gate_lets_nothing_through_not_even_what_is_infinite():
    module, x, grad = module_and_images((2, 12, 4, 4), "hard")
    with torch.no_grad():
        module.conv_expand.weight.zero_()
        module.conv_expand.bias.fill_(-5)
    grad[0, 0, 0, 0] = float("inf")
    found, exact = ours(module, x, grad), exactly(module, x, grad)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("twice", [False, True])
def test_where_nothing_is_wanted(twice):
    module, x, grad = module_and_images((2, 12, 4, 4), "hard")
    weights = tuple(p.detach() for p in module.parameters())
    y = squeeze_excite(x.requires_grad_(), weights, "hard")
    (found,) = torch.autograd.grad(y, [x], grad, create_graph=twice)
    assert apart(found.detach(), exactly(module, x.detach(), grad)[1]) < 2e-6


def test_saved_tensors_may_come_back_in_another_layout():
    module, x, grad = module_and_images((2, 12, 6, 5), "hard")
    plain = ours(module, x, grad)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
        found = ours(module, x, grad)
    assert all(map(torch.equal, found, plain))


def test_it_differentiates_twice():
    """With the gate of which torch has a second derivative, too."""
    module, x, grad = module_and_images((2, 12, 4, 4), "clamped")
    weights = tuple(module.parameters())
    x.requires_grad_()

    def second(y):
        found = torch.autograd.grad(y, (x, *weights), grad, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in found), (x, *weights))

    plain = second(module(x))
    for one, other in zip(second(squeeze_excite(x, weights, "clamped")), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
