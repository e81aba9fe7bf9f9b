"""A Ghost module from its first convolution's output on, in as few passes as can be: `cheap`.

Both halves are written where they belong in the output, with what is added to it; of all that lies
between, only the first convolution's output is kept for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spiritlevel.kernels import cheap, cpu, products
from spiritlevel.kernels.backend import MOST_SHAPES
from spiritlevel.kernels.ghost_module import Norm
from spiritlevel.kernels.plans import Plan, begin, run

__all__ = [
    "FLOORS",
    "again",
    "backward",
    "by_images",
    "by_rows",
    "descended",
    "forward",
    "product",
    "product_back",
]

_RING = 96 << 10
"""Bytes of what a chunk works in: the second cache holds it, and the rows that go through."""
_WIDTH = 32
"""Positions of a row, of several images where each has fewer: what is before a row takes long."""
_ROWS = 8 << 10
"""Numbers of a product, of both sides, that are looked at again while the second cache has them."""
_FEW, _MOST = 96, 384
"""Rows at a time, at least, as the gradient of the weights is read and written once for them; and
at most."""
_PARTS, _LEAST = 32, 8
"""Parts of all rows, at most, and where the sums that each of them has of its own would be many
numbers beside those of the rows."""
_APART = 8
"""Parts of all images, at least, before one has several."""
FLOORS = {"relu": 0.0, "identity": -math.inf}
"""What each activation lets nothing below."""


def by_images(
    shape: torch.Size,
    dtype: torch.dtype,
    ring: int,
    scratch: Callable[[int, int, int], int],
    *,
    branches: int = 0,
    sums: int = 0,
) -> Plan:
    """Chunks of some channels of one image, or of several small ones, that work in `ring` bytes.

    `scratch(width, channels, images)` tells what a chunk needs; each part has `sums` of its own.
    """
    N, C, height, width = shape
    images = max(1, min(N // _APART, _WIDTH // width))
    most = max(8, ring // scratch(width, 1, images) // 8 * 8)
    group = min(C, -(-C // -(-C // most) // 8) * 8)
    parts = -(-N // images)
    plan = Plan(dtype, (N, C, height * width, 1, 1, images, parts), parts * -(-C // group), group)
    return plan.with_scratch(scratch(width, group, images), height, width, branches, sums)


def by_rows(rows: int, numbers: int, sums: int) -> tuple[int, int, int]:
    """Of rows of so many numbers on both sides: how many at a time, how many a part, the parts.

    `sums`: numbers of which each part has its own.
    """
    few = max(_FEW, min(_MOST, _ROWS // numbers // 12 * 12))
    most = min(_PARTS, max(_LEAST, rows * numbers // (4 * sums) if sums else _PARTS))
    part = max(few, -(-rows // most // few) * few)
    return few, part, -(-rows // part)


@lru_cache(MOST_SHAPES)
def _of_images(shape: torch.Size, dtype: torch.dtype) -> Plan:
    """For the depthwise convolution, whose gradient each part has its own of."""
    return by_images(shape, dtype, _RING, cheap.scratch, sums=36 * shape[1])


@lru_cache(MOST_SHAPES)
def _of_rows(
    shape: torch.Size, channels: int, dtype: torch.dtype, back: bool, fold: int = 1
) -> Plan:
    """For the product: some of the positions of all images, and a few of them at a time."""
    rows, inner, sums = shape[0] * shape[2] * shape[3], shape[1], channels * shape[1] * back
    few, part, parts = by_rows(rows, inner + channels, sums)
    plan = Plan(dtype, (rows, channels, 1, fold, 1, part, parts), parts, channels)
    return plan.with_scratch(products.scratch(few, channels, inner), few, 0, inner, 4 * sums)


def product(x: Tensor, weight: Tensor, norm: Norm) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The 1x1 convolution of x, and the mean and biased variance that a batch norm takes of it.

    x (N, C, H, W), channels-last and dense, float32 or bfloat16; weight (C', C, 1, 1), float32; the
    statistics float64, (C',). What is `norm.running` is updated.
    """
    N, inner, height, width = x.shape
    channels = len(weight)
    plan = _of_rows(x.shape, channels, x.dtype, False)
    y = torch.empty((N, channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    mean, var = (torch.empty(channels, dtype=torch.float64) for _ in range(2))
    across = weight.reshape(channels, inner).t().contiguous()
    tensors = {"x": x, "out": y, "kernel": across, "mean": mean, "var": var}
    run(plan, begin(plan, "produce", "settle"), tensors, norm.eps, 0.0, norm.running)
    return y, (mean, var)


def product_back(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    norm: Norm,
    statistics: tuple[Tensor, ...],
    of_norm: tuple[Tensor, Tensor],
    wanted: bool,
) -> tuple[Tensor | None, Tensor]:
    """Gradients of x, where it is wanted, and weight, from what reaches the norm after y.

    `of_norm` are the gradients of the norm's own weight and bias. Where y has several times the
    channels of grad, grad reaches each share of them.
    """
    plan = _of_rows(x.shape, len(weight), x.dtype, True, len(weight) // grad.shape[1])
    grad_x = torch.empty_like(x) if wanted else None
    grad_weight = torch.empty(weight.shape, dtype=torch.float32)
    mean, var = statistics
    tensors = {
        "x": y,
        "grad": grad,
        "residual": x,
        "out": grad_x,
        "kernel": weight.contiguous(),
        "grad_kernel": grad_weight,
        "mean_before": mean,
        "var_before": var,
        "weight_before": norm.weight,
        "grad_weight_before": of_norm[0],
        "grad_bias_before": of_norm[1],
    }
    run(plan, begin(plan, "consume", "settle_products"), tensors, 0.0, norm.eps)
    return grad_x, grad_weight


def forward(
    x: Tensor,
    first: Norm,
    taps: Tensor,
    second: Norm,
    act: str,
    residual: Tensor | None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """[p, act(bn'(p * taps))] + residual with p = act(bn(x)), and the statistics of both norms.

    x (N, C, H, W), channels-last and dense, float32 or bfloat16; taps (C, 1, 3, 3), float32; the
    output and `residual` (N, 2 C, H, W) as x is; act "relu" or "identity". Statistics are float64,
    (C,): mean and biased variance of x, unless they are given, then of the depthwise convolution.
    """
    N, C, height, width = x.shape
    plan = _of_images(x.shape, x.dtype)
    before = statistics or cpu.statistics(x, first.running)
    mean, var = (torch.empty(C, dtype=torch.float64) for _ in range(2))
    out = torch.empty((N, 2 * C, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    tensors = _tensors(x, first, taps, second, (*before, mean, var))
    tensors |= {"out": out, "residual": residual}
    stages = begin(plan, "tally", "settle", "join")
    run(plan, stages, tensors, second.eps, first.eps, second.running, FLOORS[act])
    return out, (*before, mean, var)


def again(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    taps: Tensor,
    weight2: Tensor | None,
    bias2: Tensor | None,
    act: str,
    eps: tuple[float, float],
    *statistics: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """What `forward` gave without a residual, once more, to the bit, from what it gave beside."""
    N, C, height, width = x.shape
    plan = _of_images(x.shape, x.dtype)
    out = torch.empty((N, 2 * C, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    first, second = Norm(weight, bias, eps[0]), Norm(weight2, bias2, eps[1])
    tensors = _tensors(x, first, taps, second, statistics) | {"out": out}
    tensors["residual"] = residual
    run(plan, begin(plan, "join"), tensors, eps[1], eps[0], floor=FLOORS[act])
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    first: Norm,
    taps: Tensor,
    second: Norm,
    act: str,
    statistics: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """What reaches the first norm; gradients of its weight and bias, of taps, and of the second's.

    `descended` makes the gradient of x of the first three.
    """
    plan = _of_images(x.shape, x.dtype)
    names = ("grad_weight_before", "grad_bias_before", "grad_weight", "grad_bias")
    grads = {name: torch.empty(x.shape[1], dtype=torch.float32) for name in names}
    through, grad_taps = torch.empty_like(x), torch.empty(taps.shape, dtype=torch.float32)
    tensors = _tensors(x, first, taps, second, statistics) | grads
    tensors |= {"grad": grad, "grad_residual": through, "grad_kernel": grad_taps}
    stages = begin(plan, "reduce", "settle_sums", "unjoin", "settle_before")
    run(plan, stages, tensors, second.eps, first.eps, floor=FLOORS[act])
    weight, bias, *rest = grads.values()
    return through, weight, bias, grad_taps, *rest


def descended(
    through: Tensor, x: Tensor, norm: Norm, statistics: tuple[Tensor, Tensor], *of_norm: Tensor
) -> Tensor:
    """The gradient of x, from what reaches the norm and the gradients of its weight and bias."""
    count = x.numel() / x.shape[1]
    weight, bias = of_norm
    return cpu.descended(
        *(through, x, norm.weight, norm.bias, None, *statistics),
        *("identity", 0.0, norm.eps, weight, bias, count),
    )


def _tensors(
    x: Tensor, first: Norm, taps: Tensor, second: Norm, statistics: tuple[Tensor, ...]
) -> dict[str, Any]:
    mean_before, var_before, mean, var = statistics
    return {
        "x": x,
        "weight": second.weight,
        "bias": second.bias,
        "mean": mean,
        "var": var,
        "mean_before": mean_before,
        "var_before": var_before,
        "weight_before": first.weight,
        "bias_before": first.bias,
        "kernel": taps.reshape(len(taps), 9).t().contiguous(),
    }
