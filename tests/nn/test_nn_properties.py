"""Our layers against torch's, over shapes, layouts, dtypes and values that Hypothesis draws.

What is exact is torch's own layer in float64, on the same values. Where a value is not finite it is
torch's layer in the very type: there is no rounding to be apart by.
"""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import ACTIVATIONS, activation
from spiritlevel.nn import batch as snn

pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")

pytestmark = pytest.mark.slow  # kernels are compiled
EXAMPLES = {"deadline": None, "derandomize": True, "database": None}

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
ROUNDING = {
    F32: 2e-5,  # some 2**6 roundings of 2**-24 on the longest path
    F64: 1e-12,  # the same count of 2**-53
    BF16: 1.6e-2,  # input, y and gradients are stored with 8 bits: half of 2**-8 each
}
SIZES = (1, 2, 3, 5, 7, 13)
SHAPES = st.tuples(
    st.sampled_from(SIZES),
    st.sampled_from((1, 2, 3, 7, 31)),
    st.lists(st.sampled_from(SIZES[:5]), max_size=3),
).map(lambda drawn: (drawn[0], drawn[1], *drawn[2]))
SEEDS = st.integers(0, 2**16)
# Each is some kernels to compile; `test_ops` has every activation with a residual.
ENDS = {
    F32: [(act, False) for act in (*ACTIVATIONS, "leaky_relu:0.2")]
    + [(act, True) for act in ("relu", "silu", "hardswish")],
    F64: [("identity", False), ("relu", True), ("silu", False)],
}
ENDS[BF16] = ENDS[F64]
KINKS = (-3.0, 0.0, 3.0, 6.0)
VALUES = {
    "around zero": lambda z: z,
    "far from zero": lambda z: 1e4 + 1e-2 * z,
    "very far apart": lambda z: 1e4 * z,
    "all the same": lambda z: torch.full_like(z, 7.3),
    "zeros": torch.zeros_like,
    "subnormal": lambda z: 1e-40 * z,
    "an outlier": lambda z: z.index_fill(0, torch.tensor([0]), 1e6),
}


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def strided(x):
    return torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]


def permuted(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def expanded(x):
    return x[:, :, :1].expand(x.shape) if x.dim() > 2 else x[:1].expand(x.shape)


LAYOUTS = {"contiguous": torch.Tensor.contiguous, "channels-last": channels_last}
ODD = {"strided": strided, "permuted": permuted, "expanded": expanded}


def normal(shape, seed):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def layers(shape, dtype, seed, act="identity", **options):
    """Ours and torch's in `dtype`, in the same state, with no weight at 0."""
    dim = max(1, len(shape) - 2)
    name, channels = f"BatchNorm{dim}d", shape[1]
    ours = getattr(snn, f"BatchNormAct{dim}d")(channels, act, dtype=dtype, **options)
    if act == "identity":
        ours = getattr(snn, name)(channels, dtype=dtype, **options)
    theirs = getattr(nn, name)(channels, dtype=dtype, **options)
    with torch.no_grad():
        weight = normal((channels,), seed + 1)
        theirs.weight.copy_(torch.where(weight < 0, weight - 0.2, weight + 0.2))
        theirs.bias.copy_(normal((channels,), seed + 2))
        theirs.running_mean.copy_(normal((channels,), seed + 3))
        theirs.running_var.copy_(normal((channels,), seed + 4).square() + 0.1)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def on(name, layer, *inputs):
    """What the layer makes of them, on these kernels and no others."""
    before = backend.ran.copy()
    with backend.use("cpu"):
        y = layer(*inputs)
    assert set(backend.ran - before) == {name}
    return y


def one_value(shape):
    return shape[0] * math.prod(shape[2:]) == 1


def close(got, exact, dtype, size):
    """To the rounding of numbers of that size."""
    atol = ROUNDING[dtype] * max(1.0, float(torch.as_tensor(size).detach()))
    torch.testing.assert_close(got.double(), exact, rtol=ROUNDING[dtype], atol=atol)


@given(data=st.data(), shape=SHAPES, seed=SEEDS)
@settings(max_examples=200, **EXAMPLES)
def test_numbers_are_torchs(data, shape, seed):
    dtype = data.draw(st.sampled_from((F32, F64, BF16)))
    act, add = data.draw(st.sampled_from(ENDS[dtype]))
    lay = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    training = data.draw(st.booleans()) and not one_value(shape)
    of_values = data.draw(st.sampled_from(sorted(VALUES)))
    ours, theirs = layers(shape, dtype, seed, act, momentum=data.draw(st.sampled_from((0.1, None))))
    exact = copy.deepcopy(theirs).double()
    for layer in (ours, exact):
        layer.train(training)
    x = lay(VALUES[of_values](normal(shape, seed)).to(dtype)).requires_grad_()
    residual = lay(normal(shape, seed + 5).to(dtype)).requires_grad_() if add else None
    tensors = [x] if residual is None else [x, residual]
    doubles = [t.detach().double().requires_grad_() for t in tensors]

    y = on("cpu", ours, *tensors)
    z = exact(doubles[0])
    before = z + doubles[1] if add else z
    expected = activation(act)(before)
    z, before = z.detach(), before.detach()
    assert y.dtype is dtype
    assert y.stride() == x.stride()
    var = exact.running_var
    if training:
        var = doubles[0].detach().var([0, *range(2, x.dim())], correction=0)
    steep = (exact.weight.detach() / (var + ours.eps).sqrt()).abs().max()
    # In float64 torch is no more exact than we are: x * scale - mean * scale is rounded, too.
    far = steep * x.detach().abs().max() if dtype is F64 else 1.0
    close(y, expected, dtype, torch.maximum(expected.detach().abs().max(), torch.as_tensor(far)))

    upstream = normal(shape, seed + 6).to(dtype)
    for kink in KINKS:  # whose slope is that of either side
        upstream[(before - kink).abs() < 1e-4] = 0
    got = torch.autograd.grad(y, [*tensors, *ours.parameters()], upstream)
    wanted = torch.autograd.grad(expected, [*doubles, *exact.parameters()], upstream.double())
    # A gradient of x is a difference of numbers of this size, of weight and bias a sum of them.
    spread = 1 + (z.abs().max() + far) / 0.2  # of the normalized: no weight is nearer to 0
    count = x.numel() // shape[1]
    sizes = [steep * (1 + spread), 1.0] if add else [steep * (1 + spread)]
    for mine, true, size in zip(
        got, wanted, [*sizes, count**0.5 * spread, count**0.5], strict=True
    ):
        close(mine, true, dtype, 4 * size)
    size = doubles[0].abs().max()
    close(ours.running_mean, exact.running_mean, dtype, size)
    close(ours.running_var, exact.running_var, dtype, 1.0)
    assert torch.equal(ours.num_batches_tracked, exact.num_batches_tracked)


@given(
    data=st.data(),
    shape=SHAPES.filter(lambda shape: not one_value(shape)),
    dtype=st.sampled_from((F32, F64)),
    seed=SEEDS,
)
@settings(max_examples=100, **EXAMPLES)
def test_numbers_that_are_not_finite_do_what_they_do_in_torch(data, shape, dtype, seed):
    lay = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    momenta = (0.1, 0.0, 1.0, None) if dtype is F32 else (0.1, 0.0, 1.0)  # None: see below
    momentum = data.draw(st.sampled_from(momenta))
    ours, theirs = layers(shape, dtype, seed, momentum=momentum)
    for step in range(3):  # in the third, all is finite again but for the running statistics
        x = normal(shape, seed + step).to(dtype)
        if step < 2:
            for _ in range(data.draw(st.integers(1, 3))):
                where = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
                x[where] = data.draw(st.sampled_from((math.inf, -math.inf, math.nan)))
        for training in (True, False):
            same_as_torchs(ours.train(training), theirs.train(training), lay(x), dtype)


def test_a_cumulative_average_in_float64_is_torchs():
    ours, theirs = layers((4, 2), F64, 0, momentum=None)
    for seed in range(3):
        same_as_torchs(ours, theirs, normal((4, 2), seed), F64)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_an_infinite_running_mean_stays_as_torchs_does():
    ours, theirs = layers((2, 1), BF16, 0)
    for x in (torch.tensor([[math.inf], [1.0]]), torch.tensor([[2.0], [1.0]])):
        same_as_torchs(ours, theirs, x.to(BF16), BF16)


def same_as_torchs(ours, theirs, x, dtype):
    x, z = x.detach().requires_grad_(), x.detach().clone().requires_grad_()
    y, expected = on("cpu", ours, x), theirs(z)
    upstream = torch.ones_like(x)
    upstream.flatten()[::2] = 2
    got = torch.autograd.grad(y, [x, *ours.parameters()], upstream)
    wanted = torch.autograd.grad(expected, [z, *theirs.parameters()], upstream)
    atol = 30 * ROUNDING[dtype]  # two roundings of sums of numbers up to 30
    for mine, true in zip((y, *got), (expected, *wanted), strict=True):
        torch.testing.assert_close(mine, true, equal_nan=True, rtol=ROUNDING[dtype], atol=atol)
    torch.testing.assert_close(
        ours.state_dict(), theirs.state_dict(), equal_nan=True, rtol=ROUNDING[dtype], atol=1e-5
    )


@pytest.mark.parametrize("bad", [(math.inf,), (-math.inf,), (math.inf, -math.inf), (math.nan,)])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("shape", [(64, 3, 33, 31), (2, 2, 97, 89), (2000, 5), (7, 70, 9, 9)])
def test_a_running_mean_is_torchs_wherever_in_a_large_batch_infinity_is(shape, layout, bad):
    """In the first block, at the border of blocks, of parts, in the last: means are merged."""
    ours, theirs = layers(shape, F32, 0)
    clean = normal(shape, 0).float()
    positions = math.prod(shape)
    for at in (0, 1, 4095, 4096, positions // 2, positions // 2 + 1, positions - 1):
        x = clean.clone()
        for step, value in enumerate(bad):
            x.view(-1)[(at + step * (positions // 3)) % positions] = value
        x = LAYOUTS[layout](x)
        on("cpu", ours, x)
        theirs(x)
        for buffer in ("running_mean", "running_var"):
            got, expected = getattr(ours, buffer), getattr(theirs, buffer)
            torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-6)
        assert not ours.running_mean.isfinite().all()
        ours.reset_running_stats()
        theirs.reset_running_stats()


@given(shape=SHAPES.filter(lambda shape: not one_value(shape)), data=st.data(), seed=SEEDS)
@settings(max_examples=60, **EXAMPLES)
def test_numbers_whose_squares_are_beyond_float32_are_exact_where_torchs_are_not(shape, data, seed):
    """Torch's own variance is infinite then, and y the bias, or NaN."""
    lay = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    ours, theirs = layers(shape, F32, seed)
    exact = copy.deepcopy(theirs).double()
    x = normal(shape, seed).clamp(-1.5, 1.5).mul(1e38).float()
    expected = exact(x.double())
    close(on("cpu", ours, lay(x)), expected, F32, expected.detach().abs().max())
    close(ours.running_mean / 1e38, exact.running_mean / 1e38, F32, 1.0)
    assert torch.equal(ours.running_var, exact.running_var.float())


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="x - mean is beyond float32, and y infinite"
)
def test_numbers_whose_distance_is_beyond_float32_are_torchs_or_exact(layout):
    x = LAYOUTS[layout](torch.tensor([3e38, -3e38, -3e38]).view(1, 1, 1, 3))
    y = on("cpu", snn.BatchNorm2d(1), x)
    torchs, exact = nn.BatchNorm2d(1)(x), nn.BatchNorm2d(1).double()(x.double()).float()
    assert torch.equal(y, torchs) or torch.allclose(y, exact)


@given(
    shape=SHAPES.filter(lambda shape: not one_value(shape)),
    dtype=st.sampled_from((F32, F64, BF16)),
    layout=st.sampled_from(sorted(ODD)),
    training=st.booleans(),
    seed=SEEDS,
)
@settings(max_examples=100, **EXAMPLES)
def test_other_layouts_are_refused_by_name_and_else_torchs(shape, dtype, layout, training, seed):
    x = ODD[layout](normal(shape, seed).to(dtype))
    ours, theirs = layers(shape, dtype, seed)
    ours.train(training)
    theirs.train(training)
    if backend.layout(x) is not None:  # with so few numbers it is one of ours in fact
        same_as_torchs(ours, theirs, x, dtype)
        return
    with (
        pytest.raises(UsageError, match="an input with gaps, or neither contiguous nor"),
        backend.use("cpu"),
    ):
        copy.deepcopy(ours)(x)
    with backend.use("aten"):
        assert torch.equal(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@given(
    channels=st.sampled_from((1, 3, 31)),
    space=st.lists(st.integers(0, 3), max_size=3),
    training=st.booleans(),
)
@settings(max_examples=60, **EXAMPLES)
def test_an_empty_batch_is_torchs(channels, space, training):
    shape = (0, channels, *space)
    ours, theirs = layers(shape, F32, 0)
    x, z = (torch.empty(shape, requires_grad=True) for _ in range(2))
    with warnings.catch_warnings(record=True) as told:
        y, expected = on("aten", ours.train(training), x), theirs.train(training)(z)
    assert not told
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert x.grad.shape == shape
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), equal_nan=True)


@given(
    channels=st.sampled_from((1, 2, 31)), dim=st.integers(0, 3), dtype=st.sampled_from((F32, BF16))
)
@settings(max_examples=30, **EXAMPLES)
def test_one_value_a_channel_is_torchs_error_in_training_and_a_result_in_eval(channels, dim, dtype):
    shape = (1, channels, *[1] * dim)
    ours, theirs = layers(shape, dtype, 0)
    x = normal(shape, 0).to(dtype)
    with pytest.raises(ValueError, match="Expected more than 1 value") as expected:
        theirs(x)
    with pytest.raises(ValueError, match=r".") as got, backend.use("cpu"):
        ours(x)
    assert str(got.value) == str(expected.value)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    same_as_torchs(ours.eval(), theirs.eval(), x, dtype)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize(("dtype", "act", "add"), [(F64, "relu", True), (BF16, "silu", False)])
def test_layers_give_the_same_bits_on_any_number_of_threads(dtype, act, add, layout):
    """Of the kernels in float32 this is shown beside them; here of types, buffers and residual."""
    shape, results = (9, 20, 33, 31), []  # rows in two parts, planes in ten groups of channels
    x, residual, upstream = (LAYOUTS[layout](normal(shape, s).to(dtype)) for s in range(3))
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        layer, _ = layers(shape, dtype, 0, act)
        given = [x.requires_grad_(), *([residual.requires_grad_()] if add else [])]
        y = on("cpu", layer, *given)
        grads = torch.autograd.grad(y, [*given, *layer.parameters()], upstream)
        results.append([y.detach(), *grads, layer.running_mean, layer.running_var])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
