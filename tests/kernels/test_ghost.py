"""The second half of a Ghost module in few passes, against torch's operations in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
from cases import apart, default_type, same_on_any_number_of_threads
from ghost_cases import NAMES, by, exactly, given, layers
from torch.nn import functional as F

from spiritlevel.kernels import ghost
from spiritlevel.kernels.activations import Activation
from spiritlevel.kernels.ghost import Norm, forward
from spiritlevel.kernels.ghost_module import ghost_halves

SHAPES = [(2, 8, 5, 7), (3, 12, 6, 6), (4, 37, 9, 4), (2, 480, 7, 7), (2, 8, 112, 112)]
SHAPES += [(3, 5, 1, 1), (3, 5, 1, 4), (2, 36, 2, 1), (2, 300, 30, 3)]


def ours(shape, act, adds, dtype=torch.float32):
    return by(ghost, shape, act, adds, dtype)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("act", ["relu", "identity"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_as_torch_in_float64(shape, act, adds):
    (y, grads, running), (there, exact, follow) = ours(shape, act, adds), exactly(shape, act, adds)
    assert apart(y, there) < 1e-6
    for name, one, other in zip(NAMES, grads, exact, strict=True):
        assert apart(one, other) < 5e-6, name
    for one, other in zip(running, follow, strict=True):
        assert apart(one, other) < 1e-6


@pytest.mark.parametrize("act", ["relu", "identity"])
def test_in_bfloat16_each_number_is_rounded_once(act):
    shape = (2, 24, 8, 8)
    found = ours(shape, act, True, torch.bfloat16)
    there, exact, _ = exactly(shape, act, True, torch.bfloat16)
    assert found[0].dtype is found[1][0].dtype is torch.bfloat16
    assert apart(found[0], there) < 2**-8
    for name, one, other in zip(NAMES, found[1], exact, strict=True):
        assert apart(one, other) < 2**-7, name


def test_the_same_bits_on_any_number_of_threads():
    def run():
        y, grads, running = ours((5, 40, 14, 14), "relu", True)
        return [y, *grads, *running]

    assert same_on_any_number_of_threads(run)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_where_it_goes_in_torch(bad):
    (x, *rest), _, _ = given((2, 16, 4, 4))
    x[1, 3, 2, 2] = bad
    weight, bias, taps, weight2, bias2 = rest
    y, _ = forward(x, Norm(weight, bias, 1e-5), taps, Norm(weight2, bias2, 1e-5), "relu", None)
    there = layers((x, *rest), None, "relu")
    assert torch.equal(y.isnan(), there.isnan())
    assert torch.equal(y.isinf(), there.isinf())
    assert y.isnan().any()


def whole(shape=(2, 8, 6, 5), inner=12):
    """What a whole module is given: x, the weights of its product, and the rest."""
    (_, *rest), residual, grad = given(shape)
    draw = torch.Generator().manual_seed(7)
    x = torch.randn((shape[0], inner, *shape[2:]), generator=draw)
    weight = torch.randn((shape[1], inner, 1, 1), generator=draw) / inner**0.5
    return [x.contiguous(memory_format=torch.channels_last), weight, *rest], residual, grad


def of_module(tensors, residual, act="relu"):
    x, weight, scale, bias, taps, scale2, bias2 = tensors
    norms = Norm(scale, bias, 1e-5), Norm(scale2, bias2, 1e-5)
    return ghost_halves(x, weight, norms[0], taps, norms[1], Activation(act), residual)[0]


def by_layers(tensors, residual, act="relu"):
    x, weight, *rest = tensors
    return layers((F.conv2d(x, weight), *rest), residual, act)


def gradients(tensors, residual, grad):
    tensors = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(of_module(tensors, residual), tensors, grad)


def test_a_whole_module():
    tensors, residual, grad = whole()
    exact = [t.double().requires_grad_() for t in tensors]
    y = by_layers(exact, residual.double())
    assert apart(of_module(tensors, residual), y.detach()) < 1e-6
    found = torch.autograd.grad(y, exact, grad.double())
    for one, other in zip(gradients(tensors, residual, grad), found, strict=True):
        assert apart(one, other) < 5e-6


def test_weights_in_any_order_of_memory():
    tensors, residual, grad = whole()
    plain = gradients(tensors, residual, grad)
    turned = list(tensors)
    turned[1] = tensors[1].flatten(1).t().contiguous().t()[..., None, None]
    turned[4] = tensors[4].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not turned[1].is_contiguous()
    assert not turned[4].is_contiguous()
    assert all(map(torch.equal, gradients(turned, residual, grad), plain))


def test_the_default_type_is_not_its_own():
    tensors, residual, grad = whole()
    plain = gradients(tensors, residual, grad)
    for dtype in (torch.float64, torch.bfloat16):
        with default_type(dtype):
            assert all(map(torch.equal, gradients(tensors, residual, grad), plain))


def test_saved_tensors_and_gradients_may_come_in_another_layout():
    tensors, residual, grad = whole()
    plain = gradients(tensors, residual, grad)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
        found = gradients(tensors, residual, grad.contiguous())
    assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize("act", ["relu", "identity"])
def test_a_whole_module_differentiates_twice(act):
    tensors, residual, grad = whole()
    tensors = [t.requires_grad_() for t in tensors]

    def second(y):
        grads = torch.autograd.grad(y, tensors, grad, create_graph=True)
        total = sum((g**2).sum() for g in grads)
        return torch.autograd.grad(total, tensors, materialize_grads=True)

    ours, plain = (second(f(tensors, residual, act)) for f in (of_module, by_layers))
    for one, other in zip(ours, plain, strict=True):
        assert apart(one, other.double()) < 1e-3


def test_a_residual_alone_may_be_wanted():
    tensors, residual, grad = whole()
    y = of_module(tensors, residual.requires_grad_())
    (found,) = torch.autograd.grad(y, [residual], grad, create_graph=True)
    assert torch.equal(found, grad)


@pytest.mark.parametrize("act", ["relu", "identity"])
def test_it_differentiates_twice(act):
    tensors, residual, grad = given((2, 8, 4, 4))
    tensors = [t.requires_grad_() for t in tensors]
    x, weight, bias, taps, weight2, bias2 = tensors

    def second(y):
        grads = torch.autograd.grad(y, tensors, grad, create_graph=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            total = sum((g**2).sum() for g in grads)
            return torch.autograd.grad(total, tensors, materialize_grads=True)

    norms = Norm(weight, bias, 1e-5), Norm(weight2, bias2, 1e-5)
    y, *_ = ghost_halves(x, None, norms[0], taps, norms[1], Activation(act), residual)
    for one, other in zip(second(y), second(layers(tensors, residual, act)), strict=True):
        assert apart(one, other.double()) < 1e-3


def test_without_weights_and_for_whom_nothing_is_wanted():
    (x, _, _, taps, *_), residual, grad = given((2, 8, 6, 6))
    residual.requires_grad_()
    norm = Norm(None, None, 1e-5)
    y, *_ = ghost_halves(x, None, norm, taps, norm, Activation("relu"), residual)
    assert apart(y, layers((x, None, None, taps, None, None), residual, "relu").double()) < 1e-5
    (found,) = torch.autograd.grad(y, [residual], grad)
    assert torch.equal(found, grad)
