"""A Ghost module on a GPU, from its first convolution's output on: what `ghost` computes.

Channels-last. Both halves are written where they belong in the output; the depthwise convolution
tells its own statistics, and on the way back it, the activation before it and that norm's sums are
one pass. Per element of a half, with y the first convolution's output and c the second's:

    forward    y for its statistics; y, p; p, c; c, q
    backward   the gradient of q, c; both, and that of c; that of c, of p, y, and g; g, y, and y's

of which y and c are kept.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.kernels import gpu, gpu_cheap
from spiritlevel.kernels.backend import MOST_SHAPES
from spiritlevel.kernels.ghost_module import Norm
from spiritlevel.kernels.gpu_launch import Plan, launch, moments, scratch

__all__ = ["backward", "descended", "forward", "product", "product_back"]

_TILE, _WARPS = 512, 4
"""Squares of a tile, times channels: `unjoin` has eleven sums for each."""
_PROGRAMS = (2, 3, 4, 8)


@lru_cache(MOST_SHAPES)
def _plan(shape: torch.Size, dtype: torch.dtype) -> Plan:
    """How maps are cut: squares of all images by channels."""
    N, C, height, width = shape
    count, unit = N * -(-height // 2) * -(-width // 2), math.gcd(C, 16)
    block = gpu.lanes_of(C)
    high = min(max(1, _TILE // block), triton.next_power_of_2(count))
    how = {
        "H": height,
        "W": width,
        "UNIT": unit,
        "WIDE": shape.numel() * 2 >= 1 << 31,
        "FOLD": 1,
        "CHANNELS": block,
        "BLOCK_R": high,
        "BLOCK_C": block,
        "ACC": tl.float32,
        "num_warps": max(1, min(_WARPS, high * block // 128)),
    }
    cut, across = (count, N * height * width, C // unit), (-(-C // block), 1)
    ways = [gpu.way(count, across, cut, how, programs) for programs in _PROGRAMS]
    name = f"{'x'.join(map(str, shape))} squares"
    return Plan(name, shape.numel(), C, torch.float32, ways)


def product(x: Tensor, weight: Tensor, norm: Norm) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """As `ghost.product`; with the weight in the type of x, for the way back."""
    low = weight.to(x.dtype)
    y = _maps(_flat(x) @ low.flatten(1).t(), x) if _by_rows(x) else F.conv2d(x, low)
    return y, gpu.statistics(y, norm.running), low


def product_back(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    norm: Norm,
    statistics: tuple[Tensor, ...],
    of_norm: tuple[Tensor, Tensor],
    wanted: bool,
    low: Tensor,
    *_: Tensor,
) -> tuple[Tensor | None, Tensor]:
    """As `ghost.product_back`, given what `product` handed back last."""
    through = descended(grad, y, norm, statistics, *of_norm)
    if _by_rows(x):
        flat = _flat(through)
        of_weight = _product_of_sums(flat.t(), _flat(x)).view(weight.shape)
        return _maps(flat @ low.flatten(1), x) if wanted else None, of_weight
    options: Any = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [wanted, True, False])
    grad_x, of_weight, _none = torch.ops.aten.convolution_backward(through, x, low, None, *options)
    return grad_x if wanted else None, of_weight.to(weight.dtype)


def _by_rows(x: Tensor) -> bool:
    """Whether as a product of matrices, which takes less of the processor than a convolution.

    Not in float32, where torch's convolutions and products round differently by default.
    """
    return x.dtype is not torch.float32


def _flat(x: Tensor) -> Tensor:
    return x.movedim(1, -1).flatten(0, 2)


def _maps(flat: Tensor, x: Tensor) -> Tensor:
    return flat.view(x.shape[0], *x.shape[2:], -1).movedim(-1, 1)


def _product_of_sums(a: Tensor, b: Tensor) -> Tensor:
    """In float32, not rounded to a half in between, where torch has that."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def forward(
    x: Tensor,
    first: Norm,
    taps: Tensor,
    second: Norm,
    act: str,
    residual: Tensor | None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """As `ghost.forward`; with the depthwise convolution's output, for the way back."""
    C = x.shape[1]
    before = statistics or gpu.statistics(x, first.running)
    out = gpu.rows(x, 2 * C)
    halves, of_first = (out[:, :C], out[:, C:]), (first.weight, first.bias)
    # What is added goes neither through the depthwise convolution nor through an activation.
    within = None if residual is None or act != "identity" else residual
    p = halves[0] if within is None else gpu.rows(x, C)
    gpu.forward(x, *of_first, None, act, 0.0, first.eps, before, out=p)
    if within is not None:
        torch.add(p, within[:, :C], out=halves[0])
    c, after = _convolved(p, taps, second)
    added = None if within is None else within[:, C:]
    options = act, 0.0, second.eps, after
    gpu.forward(c, second.weight, second.bias, added, *options, out=halves[1])
    if residual is not None and within is None:
        out += residual
    return out, (*before, *after), c


def _convolved(p: Tensor, taps: Tensor, norm: Norm) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    plan, (_, C, *_) = _plan(p.shape, p.dtype), p.shape
    c = gpu.rows(p, C)
    mean, var = moments(p, C)
    there = gpu.layout(p)
    assert there is not None
    followed = (None, None, 0.0, 0.0) if norm.running is None else norm.running
    sums = scratch(p, plan, 4)
    given = p, there.outer // math.gcd(C, 16), taps.contiguous(), c, *sums, mean, var, *followed
    launch(gpu_cheap.convolve, p, plan, given)
    return c, (mean, var)


def backward(
    grad: Tensor,
    x: Tensor,
    first: Norm,
    taps: Tensor,
    second: Norm,
    act: str,
    statistics: tuple[Tensor, ...],
    *kept: Tensor,
) -> tuple[Tensor, ...]:
    """As `ghost.backward`; `kept` ends in what `forward` handed back last."""
    C, plan, c = x.shape[1], _plan(x.shape, x.dtype), kept[-1]
    mean, var, mean2, var2 = statistics
    of_second = second.weight, second.bias, None, None, mean2, var2
    back, of_weight2, of_bias2, _ = gpu.backward(
        grad[:, C:], c, *of_second, act, 0.0, second.eps, True
    )
    taps = taps.contiguous()
    through, grad_taps = torch.empty_like(x), torch.empty_like(taps)
    of_weight, of_bias = (torch.empty(C, dtype=torch.float32, device=x.device) for _ in range(2))
    partials, _, counter = scratch(x, plan, 11)
    there = gpu.layout(grad)
    assert there is not None
    beside = grad[:, :C], there.outer // math.gcd(C, 16)
    sums = mean, var, first.weight, first.bias, of_weight, of_bias, grad_taps
    operands = back, *beside, x, taps, through, partials, counter, *sums
    launch(gpu_cheap.unjoin, x, plan, operands, (("ACT", act), ("EPS", first.eps)))
    return through, of_weight, of_bias, grad_taps, of_weight2, of_bias2


def descended(
    through: Tensor, x: Tensor, norm: Norm, statistics: tuple[Tensor, ...], *of_norm: Tensor
) -> Tensor:
    """As `ghost.descended`."""
    (mean, var), (weight, bias), count = statistics, of_norm, x.numel() / x.shape[1]
    given = through, x, norm.weight, norm.bias, None, mean, var, "identity", 0.0, norm.eps
    return gpu.descended(*given, weight, bias, count)
