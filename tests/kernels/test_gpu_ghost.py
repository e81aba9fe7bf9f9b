"""A Ghost module by the kernels of `gpu`, on a GPU or as Triton's interpreter runs them."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import apart, where_gpu_runs
from ghost_cases import NAMES, by, exactly

from spiritlevel.kernels import backend
from spiritlevel.models.ghost import GhostModule
from spiritlevel.models.layers import Layers

pytest.importorskip("triton", reason="the kernels of `gpu` need the extra triton")
from spiritlevel.kernels import gpu_ghost

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
# Squares that stick out of a map, maps of one row, of one column and of one position, two tiles.
SHAPES = [(2, 8, 5, 7), (3, 12, 6, 6), (4, 37, 9, 4), (2, 96, 7, 7), (3, 5, 1, 1), (3, 5, 1, 4)]
SHAPES += [(2, 36, 2, 1), (2, 600, 3, 3), (4, 1, 6, 5)]


@pytest.fixture(autouse=True)
def _device(monkeypatch):
    """Torch's convolutions round float32 to float32 there, not to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.device(where_gpu_runs()):
        yield


def ours(shape, act, adds, dtype=torch.float32):
    return by(gpu_ghost, shape, act, adds, dtype)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_halves_each_tensor_is_rounded_once(dtype):
    shape = (2, 24, 8, 8)
    found, exact = ours(shape, "identity", True, dtype), exactly(shape, "identity", True, dtype)
    assert found[0].dtype is found[1][0].dtype is dtype
    # p, c and what reaches each of them are stored.
    bound = 4 * torch.finfo(dtype).eps
    assert apart(found[0], exact[0]) < bound
    for name, one, other in zip(NAMES, found[1], exact[1], strict=True):
        assert apart(one, other) < bound, name


def test_two_runs_give_the_same_bits():
    first, second = (ours((5, 40, 14, 14), "relu", True) for _ in range(2))
    assert all(map(torch.equal, (first[0], *first[1]), (second[0], *second[1])))


def module_and_input(inputs=20, outputs=24):
    torch.manual_seed(0)
    module = GhostModule(inputs, outputs, Layers.of("batch"))
    x = torch.randn(3, inputs, 6, 5).contiguous(memory_format=torch.channels_last)
    return module.to(memory_format=torch.channels_last), x.requires_grad_()


# Torch cannot tell of one channel whether it is channels-last.
@pytest.mark.parametrize("channels", [(20, 24), (1, 24), (20, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("half", [False, True], ids=["", "autocast"])
def test_a_module_trains_as_its_layers_do(half, channels):
    module, x = module_and_input(*channels)
    outcomes = []
    for kernels in ("aten", "gpu"):
        twin = copy.deepcopy(module)
        with (
            backend.use(kernels),
            torch.autocast(x.device.type, torch.bfloat16, enabled=half),
        ):
            before = backend.ran["gpu"]
            y = twin(x)
            assert (backend.ran["gpu"] - before == 2) is (kernels == "gpu")
        grads = torch.autograd.grad(y.float().square().mean(), [x, *twin.parameters()])
        outcomes.append((y, *grads, *twin.buffers()))
    for one, other in zip(*outcomes, strict=True):
        assert one.dtype is other.dtype
        assert apart(one, other.double()) < (0.05 if half else 5e-6)


def test_taps_that_lie_apart():
    module, x = module_and_input()
    conv = module.cheap_operation[0]
    turned = copy.deepcopy(module)
    conv.weight.data = conv.weight.data.transpose(2, 3).contiguous()
    turned.cheap_operation[0].weight.data = turned.cheap_operation[0].weight.data.transpose(2, 3)
    with backend.use("gpu"):
        one, other = module(x), turned(x)
    assert torch.equal(one, other)
    (grad,) = torch.autograd.grad(one.square().sum(), conv.weight)
    (same,) = torch.autograd.grad(other.square().sum(), turned.cheap_operation[0].weight)
    assert torch.equal(grad, same)


def test_a_gradient_that_stands_for_its_negative():
    module, x = module_and_input()
    with backend.use("gpu"):
        y = module(x)
    grad = torch.randn_like(y)
    one, other = (
        torch.autograd.grad(y, [x, *module.parameters()], each, retain_graph=True)
        for each in (grad, torch._neg_view(-grad))
    )
    assert all(map(torch.equal, one, other))
