import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from spiritlevel.kernels.reference import batch_norm

# Float64 rounding of two formulas for the same thing.
EXACT = {"rtol": 1e-12, "atol": 1e-12}

SHAPES = [(8, 5), (7, 1), (2, 3), (5, 3, 7), (1, 2, 3), (3, 2, 5, 7), (2, 1, 4, 4), (2, 3, 2, 3, 5)]


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_channel(x, weight, bias, eps):
    """One channel after the other, its values in a Python list, sums without rounding."""
    x = x.numpy()
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c].ravel().tolist()
        mean = math.fsum(values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
        y[:, c] = (x[:, c] - mean) / math.sqrt(variance + eps) * weight[c].item() + bias[c].item()
    return torch.from_numpy(y)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_formula(shape, eps):
    x = doubles(*shape) * 3 + 2
    weight, bias = doubles(2, shape[1], seed=1)
    got = batch_norm(x, weight, bias, eps=eps)
    torch.testing.assert_close(got, by_channel(x, weight, bias, eps), **EXACT)


@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_torchs(shape, affine):
    x = doubles(*shape).requires_grad_()
    parameters = [
        doubles(shape[1], seed=i).requires_grad_() if given else None
        for i, given in enumerate(affine, 1)
    ]
    outputs = batch_norm(x, *parameters), F.batch_norm(x, None, None, *parameters, training=True)
    torch.testing.assert_close(*outputs, **EXACT)
    leaves = [x, *(p for p in parameters if p is not None)]
    upstream = doubles(*shape, seed=3)
    ours, torchs = (torch.autograd.grad(y, leaves, upstream) for y in outputs)
    torch.testing.assert_close(ours, torchs, **EXACT)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 2), (2, 1, 2, 2)], ids=str)
def test_both_derivatives(shape, eps):
    leaves = [t.requires_grad_() for t in (doubles(*shape), *doubles(2, shape[1], seed=1))]

    def apply(x, weight, bias):
        return batch_norm(x, weight, bias, eps=eps)

    assert torch.autograd.gradcheck(apply, leaves)
    assert torch.autograd.gradgradcheck(apply, leaves)


@settings(max_examples=50, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    sign=st.sampled_from([-1, 1]),
    shift=st.floats(-1e3, 1e3),
    shape=st.sampled_from([(6, 3), (2, 3, 2, 2)]),
)
def test_scale_and_shift_of_the_input_are_forgotten(scale, sign, shift, shape):
    x = doubles(*shape)
    got = batch_norm(sign * scale * x + shift, eps=0)
    # Rounding of the shifted input, relative to its deviation.
    tolerance = 4e-15 * (1 + abs(shift) / scale)
    torch.testing.assert_close(got, sign * batch_norm(x, eps=0), rtol=0, atol=tolerance)


def test_moments_after_it_are_those_asked_for():
    x = doubles(6, 3, 5) * torch.tensor([[[1e-3], [1.0], [1e3]]]) + 7
    weight, bias = torch.tensor([2.0, 3.0, 4.0]).double(), torch.tensor([-1.0, 0.0, 1.0]).double()
    y = batch_norm(x, weight, bias, eps=0).numpy()
    np.testing.assert_allclose(y.mean((0, 2)), bias, atol=1e-9)
    np.testing.assert_allclose(y.std((0, 2)), weight, rtol=1e-9)


def test_a_channel_without_variance_becomes_the_bias():
    x = torch.full((4, 2, 3), 0.1, dtype=torch.float32)
    weight, bias = torch.tensor([5.0, 5.0]), torch.tensor([-1.0, 2.0])
    expected = bias.view(1, 2, 1).expand(4, 2, 3)
    # The mean of twelve 0.1 may be one unit in the last place off; over sqrt(eps) that is 3e-6.
    torch.testing.assert_close(batch_norm(x, weight, bias), expected, rtol=0, atol=2e-5)
    single = batch_norm(doubles(1, 2, 1), weight.double(), bias.double())
    assert torch.equal(single, bias.double().view(1, 2, 1))
    assert batch_norm(x.new_ones(4, 2), eps=0).isnan().all()


def test_a_mean_far_above_the_deviation():
    x = (doubles(256, 4) * 0.01 + 100).float()
    expected = batch_norm(x.double())
    # Float32 holds a mean of 100 to 4e-6, which is 4e-4 deviations; E[x^2] - E[x]^2 would be noise.
    torch.testing.assert_close(batch_norm(x).double(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "x",
    [
        doubles(3, 5, 4, 2).permute(0, 3, 1, 2),
        doubles(6, 4)[::2],
        doubles(4, 6).T,
        doubles(2, 3, 4, 5).to(memory_format=torch.channels_last),
        doubles(1, 3, 1).expand(4, 3, 5),
    ],
    ids=["permuted", "strided", "transposed", "channels-last", "expanded"],
)
def test_the_layout_does_not_matter(x):
    torch.testing.assert_close(batch_norm(x), batch_norm(x.contiguous()), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_stays_in_the_dtype_given_and_writes_nothing(dtype):
    x = doubles(8, 3).to(dtype)
    before = x.clone()
    assert batch_norm(x).dtype is dtype
    assert torch.equal(x, before)
