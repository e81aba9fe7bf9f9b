"""A Ghost module from its first convolution's output on: tensors, and torch's numbers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.kernels.ghost_module import Norm

NAMES = ("x", "weight", "bias", "taps", "weight2", "bias2")


def given(shape, dtype=torch.float32, far=3.0):
    """x far from its mean, both norms' weights and biases, a kernel, a residual and a gradient."""
    draw = torch.Generator("cpu").manual_seed(sum(shape))
    N, C, H, W = shape
    x = (torch.randn(shape, generator=draw, device="cpu") * 2 + far).to(dtype)
    weight, bias, weight2, bias2 = torch.randn((4, C), generator=draw, device="cpu")
    taps = torch.randn((C, 1, 3, 3), generator=draw, device="cpu") / 3
    both = torch.randn((2, N, 2 * C, H, W), generator=draw, device="cpu").to(dtype)
    x, residual, grad = (
        t.contiguous(memory_format=torch.channels_last) for t in (x, both[0], both[1])
    )
    device, tensors = torch.get_default_device(), (x, weight, bias, taps, weight2, bias2)
    return tuple(t.to(device) for t in tensors), residual.to(device), grad.to(device)


def layers(tensors, residual, act, running=None):
    """By torch's operations: output, in the type of the tensors."""
    x, weight, bias, taps, weight2, bias2 = tensors
    running = running or [None] * 4
    act = F.relu if act == "relu" else nn.Identity()
    p = act(F.batch_norm(x, *running[:2], weight, bias, True, 0.1))
    c = F.conv2d(p, taps, None, 1, 1, 1, len(taps))
    y = torch.cat([p, act(F.batch_norm(c, *running[2:], weight2, bias2, True, 0.1))], 1)
    return y if residual is None else y + residual


def exactly(shape, act, adds, dtype=torch.float32):
    """Output, gradients and running statistics, in float64."""
    tensors, residual, grad = given(shape, dtype)
    exact = [t.double().requires_grad_() for t in tensors]
    running = [torch.zeros(shape[1]).double() for _ in range(4)]
    y = layers(exact, residual.double() if adds else None, act, running)
    return y.detach(), torch.autograd.grad(y, exact, grad.double()), running


def by(kernels, shape, act, adds, dtype=torch.float32):
    """The same by `ghost` or `gpu_ghost`, which may hand back what it needs on the way back."""
    (x, weight, bias, taps, weight2, bias2), residual, grad = given(shape, dtype)
    count = x.numel() / shape[1]
    running = [torch.zeros(shape[1]) for _ in range(4)]
    factor = count / (count - 1)
    first = Norm(weight, bias, 1e-5, (*running[:2], 0.1, factor))
    second = Norm(weight2, bias2, 1e-5, (*running[2:], 0.1, factor))
    y, found, *kept = kernels.forward(x, first, taps, second, act, residual if adds else None)
    through, *grads = kernels.backward(grad, x, first, taps, second, act, found, *kept)
    grad_x = kernels.descended(through, x, first, found[:2], *grads[:2])
    return y, (grad_x, *grads), running
