"""What the kernels of every processor must do, against the reference in float64.

`test_ops` and `test_gpu` each run it on theirs, with `cases.on`.
"""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, expected, leaves, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import TOLERANCE
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import ACTIVATIONS, activation
from spiritlevel.kernels.ops import batch_norm_act

SHAPES = [(7, 5), (2, 1), (5, 3, 7), (3, 37, 1), (4, 6, 5, 5), (2, 1, 3, 67), (2, 3, 2, 3, 5)]


def measured(tensors, grad, act, eps=1e-5, statistics=None):
    x, weight, bias, residual = tensors
    y, _, _ = batch_norm_act(x, weight, bias, residual, act=act, eps=eps, statistics=statistics)
    wanted = [t for t in tensors if t is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad)]


def check(tensors, act, eps=1e-5, statistics=None):
    x = tensors[0]
    grad = torch.empty_like(x).copy_(tensor(x.shape, x.dtype, seed=9))
    got = measured(tensors, grad, act, eps, statistics)
    assert got[0].dtype is x.dtype
    assert got[0].stride() == x.stride()
    for ours, exact in zip(got, expected(tensors, grad, act, eps, statistics), strict=True):
        torch.testing.assert_close(ours.double(), exact, **TOLERANCE[x.dtype])


@pytest.mark.parametrize("residual", [False, True], ids=["", "add"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", [*ACTIVATIONS, "leaky_relu:0.2"])
def test_every_activation(act, layout, residual):
    check(leaves((3, 5, 4, 7), layout=layout, residual=residual), act)


@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_every_type(dtype, layout, act):
    check(leaves((3, 5, 4, 7), dtype, layout, residual=act == "relu"), act)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape, layout, affine):
    check(leaves(shape, layout=layout, affine=affine), "relu")


# Planes in parts of the batch, long planes, rows in parts, folded rows, a prime count of rows;
# small planes of many samples, which are lanes.
CUT = [(6, 3, 70, 91), (40, 70, 5, 9), (131, 300), (3, 9, 11, 13), (16, 5, 1, 2), (37, 19, 3, 3)]


@pytest.mark.parametrize("residual", [False, True], ids=["", "add"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CUT, ids=str)
def test_cut_into_parts_and_groups(shape, layout, residual):
    check(leaves(shape, layout=layout, residual=residual), "relu")


@pytest.mark.parametrize("residual", [False, True], ids=["", "add"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eval(layout, residual):
    statistics = tensor((5,), torch.float64), tensor((5,), torch.float64, seed=4).abs()
    tensors = leaves((3, 5, 4, 7), layout=layout, residual=residual)
    check(tensors, "relu", eps=1e-3, statistics=statistics)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_turned_but_not_in_memory(layout):
    """A tensor that stands for its negative: what is added, and what comes back."""
    tensors = leaves((3, 5, 4, 7), layout=layout, residual=True)
    grad, added = tensor((3, 5, 4, 7), layout=layout, seed=9), tensors[3].detach()
    y, *_ = batch_norm_act(*tensors[:3], torch._neg_view(-added).requires_grad_(), act="relu")
    z, *_ = batch_norm_act(*tensors, act="relu")
    assert torch.equal(y, z)
    wanted = torch.autograd.grad(z, tensors, grad)
    z, *_ = batch_norm_act(*tensors, act="relu")
    found = torch.autograd.grad(z, tensors, torch._neg_view(-grad))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_running_statistics_may_change_before_an_eval_pass_goes_back(dtype):
    tensors = leaves((3, 5, 4, 7), dtype)
    grad, (mean, var) = tensor((3, 5, 4, 7), dtype, seed=9), tensor((2, 5), dtype, seed=4).abs()
    exact = expected(tensors, grad, "silu", statistics=(mean.double(), var.double()))
    y, *_ = batch_norm_act(*tensors[:3], act="silu", statistics=(mean, var))
    for running in (mean, var):
        running.fill_(9)
    found = y, *torch.autograd.grad(y, tensors[:3], grad)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_and_variance_are_handed_back(layout):
    x = tensor((4, 6, 5, 5), layout=layout, scale=3, mean=7)
    _, mean, var = batch_norm_act(x)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert mean.dtype is var.dtype is torch.float64
    torch.testing.assert_close(mean, exact_mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(var, exact_var, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 4, 40, 41), (16, 24, 3, 3), (999, 8)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mean_far_from_zero_costs_no_more_than_torchs(shape, layout):
    x = tensor(shape, layout=layout, scale=1e-2, mean=1e4)
    x = x.cpu()
    exact = F.batch_norm(x.double(), None, None, training=True)
    ours = (batch_norm_act(x.to(torch.get_default_device()))[0].cpu() - exact).abs().max()
    torchs = (F.batch_norm(x, None, None, training=True) - exact).abs().max()
    assert ours <= torchs
    assert ours < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", [0.0, -1e6], ids=["", "an outlier first"])
def test_means_that_wander_over_the_batch_are_merged_exactly(layout, first):
    x = tensor((64, 3, 9, 9), layout=layout)
    x += torch.linspace(-1e3, 1e3, 64).view(-1, 1, 1, 1)
    x[0, 0, 0, 0] += first
    _, mean, var = batch_norm_act(x)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    # Values near 1000 are rounded at 2**-24 of that.
    torch.testing.assert_close(mean, exact_mean, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(var, exact_var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("act", list(ACTIVATIONS))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [torch.nan, 3e38])
def test_numbers_beyond_all_bounds_do_what_torch_does(bad, layout, act):
    x = tensor((4, 3, 5, 5), layout=layout)
    x[1, 1, 2, 2] = bad
    _, mean, var = batch_norm_act(x, act=act)
    running_mean, running_var = torchs_statistics(x)
    torch.testing.assert_close(mean.float(), running_mean, equal_nan=True)
    unbiased = (var * 100 / 99).float()
    torch.testing.assert_close(unbiased, running_var, equal_nan=True)
    clean = torch.tensor([0, 2])
    torch.testing.assert_close(*both(x[:, clean], act), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(64, 4, 40, 41), (80, 3, 5, 5), (9000, 3)], ids=str)
def test_an_infinite_channel_has_torchs_statistics(shape, layout, bad):
    x = tensor(shape, layout=layout)
    x[1, 1] = bad  # in the first block of several
    _, mean, var = batch_norm_act(x)
    running_mean, running_var = torchs_statistics(x)
    torch.testing.assert_close(mean.float(), running_mean, equal_nan=True, atol=1e-6, rtol=1e-5)
    count = x.numel() // shape[1]
    unbiased = (var * (count / (count - 1))).float()
    # Torch sums the squares of some 1e5 values in float32.
    torch.testing.assert_close(unbiased, running_var, equal_nan=True, atol=0, rtol=1e-4)


def torchs_statistics(x):
    """Mean and unbiased variance, of torch's kernels for a processor."""
    mean, var = (torch.zeros(x.shape[1], device="cpu") for _ in range(2))
    F.batch_norm(x.cpu(), mean, var, training=True, momentum=1.0)
    return mean.to(x.device), var.to(x.device)


def both(x, act):
    y = F.batch_norm(x, None, None, training=True)
    ours, _, _ = batch_norm_act(x.contiguous(), act=act)
    return ours, activation(act)(y)


@pytest.mark.parametrize("act", list(ACTIVATIONS))
def test_kinks_and_extremes_of_the_activations_are_torchs(act):
    special = [
        0.0,
        -0.0,
        3.0,
        -3.0,
        6.0,
        88.0,
        -88.0,
        200.0,
        -200.0,
        torch.inf,
        -torch.inf,
        torch.nan,
    ]
    # Of torch's own kernels only those for whole vectors tell NaN alike on every processor.
    z = torch.tensor(special * 4).view(-1, 1).requires_grad_()
    statistics = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    ours, _, _ = batch_norm_act(z, act=act, eps=0.0, statistics=statistics)
    (ours_back,) = torch.autograd.grad(ours.sum(), z)
    on_cpu = z.detach().cpu().requires_grad_()
    theirs = ACTIVATIONS[act](on_cpu)
    (theirs_back,) = torch.autograd.grad(theirs.sum(), on_cpu)
    theirs, theirs_back = theirs.to(z.device), theirs_back.to(z.device)
    torch.testing.assert_close(ours, theirs, equal_nan=True, **TOLERANCE[torch.float32])
    torch.testing.assert_close(ours_back, theirs_back, equal_nan=True, **TOLERANCE[torch.float32])


@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=5).map(tuple),
    layout=st.sampled_from(LAYOUTS),
    residual=st.booleans(),
    scale=st.floats(-6, 6).map(lambda e: 10.0**e),
    shift=st.floats(-100, 100),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_scale_and_shift_of_the_input_do_not_matter(shape, layout, residual, scale, shift):
    """bn(a x + b) == bn(x), in float64, with eps out of the way."""
    x = tensor(shape, torch.float64, layout)
    added = tensor(shape, torch.float64, layout, seed=1) if residual else None
    moved = (x + shift) * scale
    y, _, var = batch_norm_act(x, None, None, added, act="relu", eps=0.0)
    z, _, _ = batch_norm_act(moved, None, None, added, act="relu", eps=0.0)
    varies = (var > 1e-6).view(-1, *[1] * (x.dim() - 2)).expand(shape)
    torch.testing.assert_close(y[varies], z[varies], rtol=1e-7, atol=1e-7)


def test_zero_variance_gives_the_bias():
    bias = torch.tensor([0.5, -2.0, 0.0])
    y, _, var = batch_norm_act(torch.full((4, 3, 2, 2), 7.3), torch.ones(3), bias)
    assert torch.equal(var, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(y, bias.view(1, 3, 1, 1).expand(4, 3, 2, 2))


def test_a_gradient_in_another_order_and_an_expanded_one():
    x, weight, bias, residual = leaves((3, 5, 4, 7), layout="channels-last", residual=True)
    y, _, _ = batch_norm_act(x, weight, bias, residual.contiguous(), act="relu")
    wanted = [x, weight, bias, residual]
    for grad in (torch.ones(()).expand(3, 5, 4, 7), tensor((3, 5, 4, 7), seed=5)):
        got = torch.autograd.grad(y, wanted, grad, retain_graph=True)
        exact = expected(wanted, grad, "relu")[1:]
        for ours, theirs in zip(got, exact, strict=True):
            torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "residual"])
@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
def test_gradients_only_where_they_are_wanted(act, frozen):
    names = ["x", "weight", "bias", "residual"]
    tensors = leaves((3, 5, 4, 7), residual=True)
    grad = tensor((3, 5, 4, 7), seed=5)
    exact = dict(zip(names, expected(tensors, grad, act)[1:], strict=True))
    tensors[names.index(frozen)].requires_grad_(False)
    y, _, _ = batch_norm_act(*tensors, act=act)
    y.backward(grad)
    for name, each in zip(names, tensors, strict=True):
        if name == frozen:
            assert each.grad is None
        else:
            torch.testing.assert_close(each.grad.double(), exact[name], **TOLERANCE[torch.float32])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [False, True], ids=["", "add"])
@pytest.mark.parametrize("act", [a for a in ACTIVATIONS if a != "hardsigmoid"])
def test_it_differentiates_twice(act, residual, training):
    # Of relu and its kin second derivatives are those of the pieces; the inputs are off the kinks.
    tensors = leaves((3, 2, 2, 2), torch.float64, residual=residual)
    given = [t for t in tensors if t is not None]
    statistics = None
    if not training:
        statistics = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def normalized(x, weight, bias, residual=None):
        return batch_norm_act(x, weight, bias, residual, act=act, statistics=statistics)[0]

    slow = backend.asked() == "gpu"  # the interpreter
    assert torch.autograd.gradcheck(normalized, given, fast_mode=slow)
    assert torch.autograd.gradgradcheck(normalized, given, fast_mode=slow)


def test_an_unknown_activation_is_refused_by_name():
    batch_norm_act(tensor((3, 2)))
    with pytest.raises(UsageError, match=r"got activation 'swoosh'; wanted one of identity, relu"):
        batch_norm_act(tensor((3, 2)), act="swoosh")
