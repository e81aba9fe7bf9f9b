import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.kernels import use
from spiritlevel.nn import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from spiritlevel.nn.observe import observing


def groups_of(x, size):
    """The groups as the file's head has them, as lists of sample indices."""
    whole = len(x) - len(x) % size
    dealt = [list(range(k, whole, whole // size)) for k in range(whole // size)]
    return dealt + ([list(range(whole, len(x)))] if whole < len(x) else [])


def one_by_one(x, size, weight, bias):
    """The slow twin: each group by itself."""
    y = torch.empty_like(x)
    for group in groups_of(x, size):
        y[group] = F.batch_norm(x[group], None, None, weight, bias, training=True)
    return y


def ghost(channels, size, **options):
    layer = GhostBatchNorm2d(channels, size, **options).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
    return layer


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 13),
    size=st.integers(1, 6),
    channels=st.integers(1, 3),
    side=st.integers(2, 3),
    seed=st.integers(0, 2**16),
)
def test_every_group_is_normalised_by_itself(samples, size, channels, side, seed):
    torch.manual_seed(seed)
    x = torch.randn(samples, channels, side, side, dtype=torch.float64, requires_grad=True)
    layer = ghost(channels, size)
    y, expected = layer(x), one_by_one(x, size, layer.weight, layer.bias)
    torch.testing.assert_close(y, expected)
    leaves, towards = [x, layer.weight, layer.bias], torch.randn_like(y)
    for got, wanted in zip(
        torch.autograd.grad(y, leaves, towards),
        torch.autograd.grad(expected, leaves, towards),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(0.1, 100),
    shift=st.floats(-100, 100),
    samples=st.sampled_from([2, 3, 4, 6, 7, 8]),
)
def test_scale_and_shift_of_the_input_do_not_matter(scale, shift, samples):
    torch.manual_seed(samples)
    x = torch.randn(samples, 3, dtype=torch.float64)
    layer = GhostBatchNorm1d(3, 4, eps=1e-12).double()
    torch.testing.assert_close(layer(scale * x + shift), layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("samples", [16, 19, 3])
def test_running_statistics_follow_all_groups(samples):
    x = torch.randn(samples, 5, 3, 3, dtype=torch.float64) * 3 + 7
    layer, plain = ghost(5, 4), nn.BatchNorm2d(5).double()
    layer(x), plain(x)
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    var = sum(len(g) / samples * x[g].var((0, 2, 3), correction=1) for g in groups_of(x, 4))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * var)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.3, None])
def test_one_group_is_plain_batch_normalization(momentum):
    layer, plain = GhostBatchNorm2d(5, 8, momentum=momentum), nn.BatchNorm2d(5, momentum=momentum)
    for _ in range(3):
        x = torch.randn(8, 5, 4, 4) + 2
        torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


def test_eval_is_plain_batch_normalization_and_the_state_loads_either_way():
    layer, plain = ghost(3, 2), nn.BatchNorm2d(3).double()
    layer(torch.randn(6, 3, 2, 2, dtype=torch.float64))
    plain.load_state_dict(layer.state_dict())
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    GhostBatchNorm2d(3, 4).double().load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (GhostBatchNorm1d(3, 4), (8, 3)),
        (GhostBatchNorm1d(3, 4), (8, 3, 7)),
        (GhostBatchNorm3d(3, 4), (8, 3, 2, 3, 5)),
    ],
)
def test_every_rank(layer, shape):
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), one_by_one(x, 4, layer.weight, layer.bias))


def test_memory_layout_does_not_matter():
    x = torch.randn(10, 4, 5, 5)
    y = GhostBatchNorm2d(4, 4)(x)
    for other in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        assert not other.is_contiguous()
        torch.testing.assert_close(GhostBatchNorm2d(4, 4)(other), y)


@pytest.mark.parametrize("shape", [(10, 4, 5, 5), (8, 4, 2, 3, 5)])
def test_channels_last_stays_so_with_the_same_numbers(shape):
    layer = {4: GhostBatchNorm2d, 5: GhostBatchNorm3d}[len(shape)](4, 4).double()
    memory = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory).requires_grad_()
    y, expected = layer(x), one_by_one(x, 4, layer.weight, layer.bias)
    assert y.is_contiguous(memory_format=memory)
    torch.testing.assert_close(y, expected)
    leaves, towards = [x, layer.weight, layer.bias], torch.randn_like(y)
    got = torch.autograd.grad(y, leaves, towards)
    torch.testing.assert_close(got, torch.autograd.grad(expected, leaves, towards))
    assert got[0].is_contiguous(memory_format=memory)


@pytest.mark.slow  # kernels are compiled
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_our_kernels_give_the_same(memory):
    pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
    layer, same = ghost(12, 4), ghost(12, 4)
    same.load_state_dict(layer.state_dict())
    for samples in (8, 11, 3):
        x = torch.randn(samples, 12, 9, 9, dtype=torch.float64).contiguous(memory_format=memory)
        with use("cpu"):
            y = layer(x)
        with use("aten"):
            torch.testing.assert_close(y, same(x))
        torch.testing.assert_close(layer.state_dict(), same.state_dict())


@pytest.mark.parametrize("samples", [16, 18, 3])
def test_who_listens_is_told_the_moments_of_the_whole_batch(samples):
    layer, told = ghost(5, 4), []
    x = torch.randn(samples, 5, 3, 3, dtype=torch.float64) * 3 + 7
    x[::2] += 4  # so that the groups differ
    with observing(lambda who, shape, values, found: told.append((who, *values(), found))):
        layer(x)
        layer.eval()(x)
    (who, given, y, statistics), (*_, none) = told
    assert who is layer
    assert given is x
    assert y.shape == x.shape
    assert none is None
    mean, var = statistics()
    assert not mean.requires_grad
    expected_var, expected_mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(var, expected_var)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # as torch imports its own compiler
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_compiled_whole_it_trains_as_it_does_eagerly(momentum, memory):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), GhostBatchNorm2d(8, 4, momentum=momentum), nn.ReLU())
    model.to(memory_format=memory)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        torch.manual_seed(seed)
        x = torch.randn(10, 3, 7, 7).contiguous(memory_format=memory)
        for each, run in ((model, compiled), (eager, eager)):
            each.zero_grad()
            run(x).square().sum().backward()
        for p, q in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(model.state_dict(), eager.state_dict(), rtol=1e-5, atol=1e-5)


def test_mean_far_above_the_deviation():
    x = torch.randn(32, 2, 4, 4) + 1e4
    exact = one_by_one(x.double(), 8, None, None)
    # float32 holds x to 1e4 * 2^-24 = 6e-4 of a deviation, and the mean to about as much.
    torch.testing.assert_close(GhostBatchNorm2d(2, 8)(x).double(), exact, rtol=0, atol=5e-3)


def test_without_variance_the_bias_is_left():
    layer = ghost(2, 4)
    y = layer(torch.full((8, 2, 3, 3), 5.0, dtype=torch.float64))
    torch.testing.assert_close(y, layer.bias.view(1, 2, 1, 1).expand_as(y))


def test_without_affine():
    x = torch.randn(8, 2)
    layer = GhostBatchNorm1d(2, 4, affine=False)
    torch.testing.assert_close(layer(x), one_by_one(x, 4, None, None))


@pytest.mark.parametrize(("samples", "size"), [(9, 4), (1, 4), (6, 1)])
def test_a_group_of_one_value_is_refused(samples, size):
    layer = GhostBatchNorm1d(3, size)
    with pytest.raises(
        UsageError, match=rf"\({samples}, 3\) in groups of {size}: one has a single"
    ):
        layer(torch.randn(samples, 3))
    assert layer.num_batches_tracked == 0
    layer.eval()(torch.randn(samples, 3))


def test_wrong_rank_and_wrong_size():
    with pytest.raises(ValueError, match="expected 4D input"):
        GhostBatchNorm2d(3, 4)(torch.randn(8, 3))
    with pytest.raises(UsageError, match="group_size=0; wanted 1 or more"):
        GhostBatchNorm2d(3, 0)
    assert "group_size=4" in repr(GhostBatchNorm2d(3, 4))


def test_device_and_dtype():
    layer = GhostBatchNorm2d(4, 2, device="meta", dtype=torch.float64)
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"meta"}
    assert layer.weight.dtype is layer.running_var.dtype is torch.float64


def test_in_float64_the_average_of_all_batches_is_one():
    layer = GhostBatchNorm1d(3, 4, momentum=None).double()
    batches = torch.randn(7, 8, 3, dtype=torch.float64)
    for batch in batches:
        layer(batch)
    expected = batches.mean((0, 1))
    torch.testing.assert_close(layer.running_mean, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("samples", [4, 8])
def test_an_eps_of_0_is_refused_in_training_as_torch_does(samples):
    norm = GhostBatchNorm2d(3, 4, eps=0.0)
    with pytest.raises(ValueError, match="eps must be positive during training, but got 0"):
        norm(torch.randn(samples, 3, 2, 2))
    assert norm.num_batches_tracked == 0
    norm.eval()(torch.randn(samples, 3, 2, 2))
