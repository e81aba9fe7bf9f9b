"""The kernels of `gpu`, on a GPU; without one, as Triton's interpreter runs them."""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, expected, leaves, on, tensor
from tolerance import TOLERANCE
from torch import nn

pytest.importorskip("triton", reason="the kernels of `gpu` need the extra triton")
pytest.importorskip("hypothesis", reason="random tensors are drawn by hypothesis")
pytest.register_assert_rewrite("table")
from table import *  # noqa: E402, F403
from table import check, measured  # noqa: E402

import spiritlevel as sl  # noqa: E402
from spiritlevel.kernels import backend, gpu, gpu_launch  # noqa: E402
from spiritlevel.kernels.ops import batch_norm_act  # noqa: E402

pytestmark = [
    # NumPy, which the interpreter computes with, tells what a GPU does silently.
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    *([pytest.mark.gpu] if torch.cuda.is_available() else []),
]


@pytest.fixture(autouse=True)
def _on_gpu():
    with on("gpu"):
        yield


@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float16(layout, act):
    check(leaves((3, 5, 4, 7), torch.float16, layout, residual=act == "relu"), act)


def test_two_runs_give_the_same_bits_and_leave_the_counters_as_they_were():
    tensors = leaves((9, 37, 11, 13), layout="channels-last", residual=True)
    grad = torch.empty_like(tensors[0]).copy_(tensor((9, 37, 11, 13), seed=9))
    first, second = (measured(tensors, grad, "relu") for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert not any(counter.any() for counter in gpu_launch._COUNTERS.values())


@pytest.mark.parametrize(("programs", "stages"), [(1, 1), (16, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_however_many_programs_there_are(layout, programs, stages, monkeypatch):
    monkeypatch.setattr(gpu, "_SUMMED", ((programs, stages),))
    monkeypatch.setattr(gpu, "_TILE", 256)
    gpu._plan.cache_clear()
    check(leaves((19, 6, 9, 7), layout=layout, residual=True), "relu")
    gpu._plan.cache_clear()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_running_statistics_are_torchs(layout, momentum):
    ours, theirs = sl.nn.BatchNorm2d(5, momentum=momentum), nn.BatchNorm2d(5, momentum=momentum)
    for seed in range(3):
        x = tensor((4, 5, 6, 7), layout=layout, seed=seed, mean=seed)
        y, expected_y = ours(x), theirs(x)
        torch.testing.assert_close(y, expected_y, **TOLERANCE[torch.float32])
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, **TOLERANCE[torch.float32])
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [8, 10])
def test_groups_of_a_ghost_batch_norm(samples, layout):
    outcomes = []
    for kernels in ("reference", "gpu"):
        norm = sl.nn.GhostBatchNorm2d(5, 4).double()
        x = tensor((samples, 5, 3, 7), torch.float64, layout).requires_grad_()
        grad = tensor((samples, 5, 3, 7), torch.float64, layout, seed=1)
        with backend.use(kernels):
            y = norm(x)
        found = torch.autograd.grad(y, [x, norm.weight, norm.bias], grad)
        outcomes.append([y.detach(), *found, norm.running_mean, norm.running_var])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_groups_in_channels_last_are_normalised_at_once_and_differentiate_twice(monkeypatch):
    norm = sl.nn.GhostBatchNorm2d(3, 2).double()
    monkeypatch.setattr(type(norm), "_one_by_one", None)
    x = tensor((4, 3, 2, 2), torch.float64, "channels-last").requires_grad_()

    def normalised(x, weight, bias):
        return batch_norm_act(x, weight, bias, act="silu", groups=2)[0]

    norm(x)
    given = (x, norm.weight, norm.bias)
    assert torch.autograd.gradcheck(normalised, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(normalised, given, fast_mode=True)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beside", [4, 8, 16, 24])
def test_a_gradient_that_is_a_slice_of_the_channels(beside, layout, groups):
    """As of a concatenation: apart by what the kernels' vectors divide, or by what they do not."""
    grads = []
    for kernels in ("reference", "gpu"):
        norm = sl.nn.GhostBatchNorm2d(16, 8 // groups).double()
        x = tensor((8, 16, 3, 5), torch.float64, layout).requires_grad_()
        other = tensor((8, beside, 3, 5), torch.float64, layout, seed=1)
        grad = tensor((8, 16 + beside, 3, 5), torch.float64, layout, seed=2)
        with backend.use(kernels):
            y = torch.cat([norm(x), other], 1)
        grads.append(torch.autograd.grad(y, [x, norm.weight, norm.bias], grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_numbers_of_channels_that_lie_apart():
    x, wanted = tensor((4, 6, 5, 5)), tensor((4, 6, 5, 5), seed=1)
    both = tensor((6, 4), torch.float32, seed=2).abs()
    wide = both.double()
    apart = both[:, 0], both[:, 1]
    dense = [t.clone() for t in apart]
    for statistics in (None, (wide[:, 2], wide[:, 3])):
        y, _, _ = batch_norm_act(x, *apart, wanted, statistics=statistics)
        given = None if statistics is None else tuple(t.clone() for t in statistics)
        assert torch.equal(y, batch_norm_act(x, *dense, wanted, statistics=given)[0])
    one = torch.full((1,), 2.0).expand(6)
    assert torch.equal(batch_norm_act(x, one)[0], batch_norm_act(x, one.clone())[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mean_far_from_zero_goes_back_too(layout):
    tensors = [t.detach() for t in leaves((16, 6, 9, 7), layout=layout)[:3]]
    far = [(tensors[0] * 1e-2 + 1e3).requires_grad_(), *(t.requires_grad_() for t in tensors[1:])]
    grad = torch.empty_like(far[0]).copy_(tensor((16, 6, 9, 7), seed=9))
    got = torch.autograd.grad(batch_norm_act(*far)[0], far, grad)
    exact = expected([*far, None], grad, "identity")[1:]
    for one, other in zip(got, exact, strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=0, atol=2e-5)
