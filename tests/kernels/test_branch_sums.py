"""Sums of branches with their norms as one operation, against torch's operations in float64."""

from __future__ import annotations

import pytest
import torch
from cases import apart, default_type, last, same_on_any_number_of_threads
from torch.nn import functional as F

from spiritlevel.kernels import branch_maps, branch_products
from spiritlevel.kernels.activations import Activation
from spiritlevel.kernels.branched_depthwise import branched_depthwise
from spiritlevel.kernels.branched_module import Branch, branched_halves

# Of x and of a half of the output: by the moments of x, then by a product for each branch.
BY_MOMENTS = [((3, 5, 9, 7), 12), ((4, 16, 20, 20), 24), ((2, 8, 40, 33), 37), ((9, 4, 1, 30), 4)]
BY_PRODUCTS = [((4, 60, 10, 9), 12), ((5, 40, 3, 2), 37), ((3, 8, 1, 2), 5), ((2, 24, 7, 7), 480)]
# As many positions as are taken in several blocks.
BY_MOMENTS += [((4, 16, 56, 56), 24)]
BY_PRODUCTS += [((4, 60, 28, 28), 12)]
SHAPES = [*BY_MOMENTS, *BY_PRODUCTS]
EPS = (1e-5, 1e-3, 1e-5, 1e-2, 1e-5)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def given(shape=(3, 5, 9, 7), outer=12, dtype=torch.float32):
    """x, then kernel, weight and bias of each branch; a residual and a gradient."""
    N, inner, H, W = shape
    sides = [(outer, inner, 1, 1)] * 3 + [(outer, 1, 1, 1), None] + [(outer, 1, 3, 3)] * 3
    tensors = [last(drawn(*shape) + 1).to(dtype)]
    for at, side in enumerate(sides):
        kernel = None if side is None else drawn(*side, seed=at)
        tensors += [kernel, drawn(outer, seed=at + 10), drawn(outer, seed=at + 20)]
    both = [last(drawn(N, 2 * outer, H, W, seed=at)).to(dtype) for at in (30, 40)]
    return tensors, *both


def branches(tensors, eps):
    return [Branch(*tensors[3 * at : 3 * at + 3], eps[at]) for at in range(len(tensors) // 3)]


def of_module(tensors, residual=None, act="relu"):
    x, *flat = tensors
    halves = branches(flat[:9], EPS), branches(flat[9:], EPS)
    return branched_halves(x, *halves, Activation(act), residual)[0]


def summed(x, flat, stride=1):
    total = 0
    for kernel, weight, bias, eps in branches(flat, EPS):
        y = x
        if kernel is not None:
            side, groups = kernel.shape[-1], x.shape[1] // kernel.shape[1]
            y = F.conv2d(x, kernel, None, stride, side // 2, 1, groups)
        total = total + F.batch_norm(y, None, None, weight, bias, True, 0.1, eps)
    return total


def by_layers(tensors, residual=None, act="relu"):
    x, *flat = tensors
    act = F.relu if act == "relu" else torch.nn.Identity()
    p = act(summed(x, flat[:9]))
    y = torch.cat([p, act(summed(p, flat[9:]))], 1)
    return y if residual is None else y + residual


def gradients(way, tensors, grad, *rest, twice=False):
    """Output and gradients, or the gradients of the sum of the squares of those."""
    tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    leaves = [t for t in tensors if t is not None]
    y = way(tensors, *rest)
    found = torch.autograd.grad(y, leaves, grad.to(y.dtype), create_graph=twice)
    if twice:
        total = sum((g**2).sum() for g in found)
        return torch.autograd.grad(total, leaves, materialize_grads=True)
    return [y.detach(), *found]


def doubled(tensors):
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("act", ["relu", "identity"])
@pytest.mark.parametrize(("shape", "outer"), SHAPES, ids=str)
def test_the_same_as_torch_in_float64(shape, outer, act, adds):
    tensors, residual, grad = given(shape, outer)
    found = gradients(of_module, tensors, grad, residual if adds else None, act)
    exact = gradients(by_layers, doubled(tensors), grad, residual.double() if adds else None, act)
    assert apart(found[0], exact[0]) < 2e-6
    for one, other in zip(found, exact, strict=True):
        assert apart(one, other) < 1e-5


def test_the_residual_has_the_gradient_of_the_output():
    tensors, residual, grad = given()
    (found,) = torch.autograd.grad(of_module(tensors, residual.requires_grad_()), residual, grad)
    assert torch.equal(found, grad)


@pytest.mark.parametrize(("shape", "outer"), SHAPES, ids=str)
def test_either_way_is_taken_where_it_takes_less(shape, outer):
    tensors, *_ = given(shape, outer)
    assert branch_maps.pays(tensors[0], tensors[1:10:3]) == ((shape, outer) in BY_MOMENTS)


def norms_of(x, kernels):
    """By moments and by products; the branches in float64, and how far the sum of norms is off."""
    none, eps = [None] * len(kernels), [1e-5] * len(kernels)
    moments = branch_maps.covered(x, kernels, none, none, eps)
    raw, norms = branch_products.products(x, kernels, none, none, eps)
    each = [F.conv2d(x.double(), kernel.double()) for kernel in kernels]
    exact = sum(F.batch_norm(z, None, None, training=True, eps=1e-5) for z in each)
    off = apart(branch_products.mixed(raw, norms), exact)
    if moments is None:
        return None, norms, each, off
    return moments[0], norms, each, apart(branch_maps.mapped_sum(x, kernels, *moments), exact)


@pytest.mark.parametrize("far", [0, 100, 3000])
def test_moments_keep_the_digits_of_what_is_far_from_0(far):
    kernels = [drawn(24, 16, 1, 1, seed=at) for at in range(3)]
    found, _, each, off = norms_of(last(drawn(4, 16, 20, 20) + far), kernels)
    assert off < 2e-6
    for mean, var, z in zip(*found[:2], each, strict=True):
        torch.testing.assert_close(mean, z.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(var, z.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("apart_by", [1.0, 0.1, 0.001])
def test_a_variance_that_is_a_small_difference_is_not_taken_from_moments(apart_by):
    """Channels that are nearly one, with weights that take one from the other."""
    x = last(drawn(4, 1, 20, 20) + apart_by * drawn(4, 16, 20, 20))
    kernels = [drawn(24, 16, 1, 1, seed=at) for at in range(3)]
    kernels = [kernel - kernel.mean(1, keepdim=True) for kernel in kernels]
    found, norms, each, off = norms_of(x, kernels)
    assert (found is None) == (apart_by < 1)
    assert off < 3e-6 / apart_by
    for var, z in zip((found or norms).var, each, strict=True):
        torch.testing.assert_close(var, z.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_sums_of_products_keep_the_digits_of_what_is_far_from_0():
    kernels = [drawn(24, 16, 1, 1, seed=at) for at in range(3)]
    x = last(drawn(4, 16, 20, 20) + 3000)
    raw, norms = branch_products.products(x, kernels, [None] * 3, [None] * 3, [1e-5] * 3)
    # Distances from the mean have no sum; float32 is up to 1e-3 off such a mean.
    back = branch_products.unmixed(last(torch.ones(4, 24, 20, 20)), raw, norms)
    assert back.weight.abs().max() < 1e-2
    assert torch.equal(back.bias, torch.full((3, 24), 1600.0, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("shape", "outer"), [BY_MOMENTS[0], BY_PRODUCTS[0]], ids=str)
def test_what_is_not_finite_goes_where_it_goes_in_torch(shape, outer, bad):
    tensors, *_ = given(shape, outer)
    tensors[0][1, 3, 2, 2] = bad
    assert torch.equal(of_module(tensors).isnan(), by_layers(tensors).isnan())
    assert of_module(tensors).isnan().any()


@pytest.mark.parametrize("act", ["relu", "identity"])
@pytest.mark.parametrize(("shape", "outer"), [BY_MOMENTS[1], BY_PRODUCTS[0]], ids=str)
def test_in_bfloat16_the_first_half_and_the_output_are_rounded(shape, outer, act):
    tensors, residual, grad = given(shape, outer, torch.bfloat16)
    found = gradients(of_module, tensors, grad, residual, act)
    exact = gradients(by_layers, doubled(tensors), grad, residual.double(), act)
    assert found[0].dtype is found[1].dtype is torch.bfloat16
    # Where a relu has another sign than in float64, a gradient is another one.
    for one, other in [*zip(found, exact, strict=True)][: 1 if act == "relu" else None]:
        assert ((one.double() - other).norm() / other.norm()).item() < 0.01


@pytest.mark.parametrize(("shape", "outer"), [BY_MOMENTS[1], BY_PRODUCTS[0]], ids=str)
def test_the_same_bits_in_any_order_of_memory_and_default_type(shape, outer):
    tensors, residual, grad = given(shape, outer)
    plain = gradients(of_module, tensors, grad, residual)
    turned = list(tensors)
    turned[1] = tensors[1].flatten(1).t().contiguous().t()[..., None, None]
    turned[16] = tensors[16].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert all(map(torch.equal, gradients(of_module, turned, grad, residual), plain))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
        found = gradients(of_module, tensors, grad.contiguous(), residual)
    assert all(map(torch.equal, found, plain))
    with default_type(torch.float64):
        assert all(map(torch.equal, gradients(of_module, tensors, grad, residual), plain))


@pytest.mark.parametrize(("shape", "outer"), [BY_MOMENTS[1], BY_PRODUCTS[0]], ids=str)
def test_the_same_bits_on_any_number_of_threads(shape, outer):
    tensors, residual, grad = given(shape, outer)
    assert same_on_any_number_of_threads(lambda: gradients(of_module, tensors, grad, residual))


@pytest.mark.parametrize("act", ["relu", "identity"])
def test_a_module_differentiates_twice(act):
    tensors, residual, grad = given()
    rest = residual, act
    ours = gradients(of_module, tensors, grad, *rest, twice=True)
    plain = gradients(by_layers, doubled(tensors), grad, residual.double(), act, twice=True)
    for one, other in zip(ours, plain, strict=True):
        assert apart(one, other) < 1e-2


@pytest.mark.parametrize(("shape", "outer"), [BY_MOMENTS[0], BY_PRODUCTS[0]], ids=str)
def test_only_what_is_wanted_has_a_gradient(shape, outer):
    tensors, _, grad = given(shape, outer)
    exact = gradients(of_module, tensors, grad)[1:]
    for wanted in (1, 16):
        fixed = [None if t is None else t.detach() for t in tensors]
        fixed[wanted].requires_grad_()
        (found,) = torch.autograd.grad(of_module(fixed), fixed[wanted], grad)
        at = sum(t is not None for t in tensors[:wanted])
        assert torch.equal(found, exact[at])


HALVED = [((3, 12, 9, 7), 3), ((4, 24, 28, 28), 5), ((2, 37, 40, 33), 3), ((5, 4, 1, 3), 3)]


def that_halve(shape, side, dtype=torch.float32):
    C = shape[1]
    tensors = [last(drawn(*shape) + 1).to(dtype)]
    for at, own in enumerate((1, side, side, side)):
        kernel = drawn(C, 1, own, own, seed=at)
        tensors += [kernel, drawn(C, seed=at + 10), drawn(C, seed=at + 20)]
    outer = [-(-side // 2) for side in shape[2:]]
    return tensors, last(drawn(*shape[:2], *outer, seed=5)).to(dtype)


def of_halves(tensors):
    x, *flat = tensors
    return branched_depthwise(x, branches(flat, EPS), flat[-3].shape[-1])[0]


def halved_by_layers(tensors):
    return summed(tensors[0], tensors[1:], 2)


@pytest.mark.parametrize(("shape", "side"), HALVED, ids=str)
def test_branches_that_halve_a_map(shape, side):
    tensors, grad = that_halve(shape, side)
    exact = gradients(halved_by_layers, doubled(tensors), grad)
    found, plain = (gradients(way, tensors, grad) for way in (of_halves, halved_by_layers))
    assert apart(found[0], exact[0]) < 2e-6
    off = max(map(apart, plain, exact))
    for one, other in zip(found, exact, strict=True):
        assert apart(one, other) < 3 * off + 1e-6
    ours = gradients(of_halves, tensors, grad, twice=True)
    plain = gradients(halved_by_layers, doubled(tensors), grad, twice=True)
    for one, other in zip(ours, plain, strict=True):
        assert apart(one, other) < 2e-3


def test_branches_that_halve_a_map_in_bfloat16():
    tensors, grad = that_halve((4, 24, 28, 28), 5, torch.bfloat16)
    exact = gradients(halved_by_layers, doubled(tensors), grad)
    x, y, _scale, *others = zip(gradients(of_halves, tensors, grad), exact, strict=True)
    for one, other in (x, y, *others):  # a norm takes out what a factor for each channel does
        assert ((one.double() - other).norm() / other.norm()).item() < 0.01
