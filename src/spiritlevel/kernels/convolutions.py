"""Convolutions where torch's are slow, which differentiate twice.

Torch's are faster for many shapes: who calls these knows for which.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.kernels.backend import MOST_SHAPES
from spiritlevel.kernels.ghost_module import Norm
from spiritlevel.kernels.gradients import laid_out, left_to_torch
from spiritlevel.kernels.plans import Plan, begin, run

__all__ = ["depthwise", "pointwise", "slide", "slide_back", "widened"]

_CACHED = 192 << 10
"""Bytes of what a chunk of a depthwise convolution reads again."""
_PARTS = 16
"""Parts of all images, at most: each has a gradient of the kernel of its own."""


def depthwise(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """As torch's conv2d with as many groups as channels, and no bias.

    x (N, C, H, W), channels-last and dense, float32 or bfloat16; weight (C, 1, h, w), float32.
    """
    y: Tensor = _Depthwise.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
    return y


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """As torch's conv2d with a kernel of one position, no stride and no bias.

    x (N, C, H, W), channels-last and dense, float32 or bfloat16; weight (C', C, 1, 1), float32.
    """
    y: Tensor = _Pointwise.apply(x, weight)  # type: ignore[no-untyped-call]
    return y


def widened(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    groups: int,
) -> Tensor:
    """Torch's conv2d of x in float32, in the type of x; for the backward pass x is kept as it is.

    x (N, C, H, W), bfloat16; weight and bias float32; `options` are stride, padding, dilation.
    """
    y: Tensor = _Widened.apply(x, weight, bias, options, groups)  # type: ignore[no-untyped-call]
    return y


class _Depthwise(torch.autograd.Function):
    """(x, weight, stride, padding) -> y."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, stride, padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding
        ctx.set_materialize_grads(False)
        return slide(x, _taps(weight)[None], weight.shape[2:], stride, padding)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight), (stride, padding) = grads, ctx.saved_tensors, ctx.options
        if grad is None:
            return (None,) * 4
        if left_to_torch(grad):
            options = (stride, padding, (1, 1), False, (0, 0), len(weight))
            return *_differentiable(ctx, grad, options), None, None
        grad, x = laid_out(grad, x), laid_out(x, x)
        given = grad[None], x, _taps(weight)[None], weight.shape[2:], stride, padding
        grad_x, (grad_taps,) = slide_back(*given, ctx.needs_input_grad[0])
        return grad_x, grad_taps.t().reshape(weight.shape), None, None


class _Pointwise(torch.autograd.Function):
    """(x, weight) -> y."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        from spiritlevel.kernels import ghost

        x, weight = inputs
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        return ghost.product(x, weight, Norm(None, None, 0.0))[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        from spiritlevel.kernels import ghost

        (grad,), (x, weight) = grads, ctx.saved_tensors
        if grad is None:
            return None, None
        if left_to_torch(grad):
            return _differentiable(ctx, grad, ((1, 1), (0, 0), (1, 1), False, (0, 0), 1))
        grad, x = laid_out(grad, x), laid_out(x, x)
        # A norm that changes nothing: mean 0, variance 1, and nothing reaches its weight or bias.
        none, one = grad.new_zeros(len(weight), dtype=torch.float64), None
        one, still = none + 1, none.float()
        norm = Norm(None, None, 0.0)
        wanted = ctx.needs_input_grad[0]
        return ghost.product_back(grad, x, weight, grad, norm, (none, one), (still, still), wanted)


class _Widened(torch.autograd.Function):
    """(x, weight, bias, options, groups) -> y."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, options, groups = inputs
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.biased = (*options, False, (0, 0), groups), bias is not None
        ctx.set_materialize_grads(False)
        with torch.autocast("cpu", enabled=False):
            y: Tensor = F.conv2d(x.float(), weight, bias, *options, groups)  # type: ignore[call-overload]
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if grad is None:
            return (None,) * 5
        grad_x, grad_weight = _differentiable(ctx, grad, ctx.options)
        grad_bias = grad.float().sum((0, 2, 3)) if ctx.biased else None
        return grad_x, grad_weight, grad_bias, None, None


def slide(x: Tensor, taps: Tensor, kernel: Any, stride: Any, padding: Any) -> Tensor:
    """Depthwise convolutions of x by each of taps (n, h w, C), float32; kernel is (h, w).

    (n, N, C, height, width), of which each is channels-last.
    """
    n, (N, C) = len(taps), x.shape[:2]
    plan, geometry = _plan(x.shape, tuple(kernel), stride, padding, x.dtype, n)
    height, width = geometry[2:4].tolist()
    y = torch.empty((n, N, height, width, C), dtype=x.dtype).permute(0, 1, 4, 2, 3)
    tensors = {"x": x, "out": y, "kernel": taps, "geometry": geometry}
    run(plan, begin(plan, "slide"), tensors)
    return y


def slide_back(
    grad: Tensor, x: Tensor, taps: Tensor, kernel: Any, stride: Any, padding: Any, wanted: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients of x, where it is wanted, and of taps, from grad as `slide` gives y."""
    plan, geometry = _plan(x.shape, tuple(kernel), stride, padding, x.dtype, len(taps))
    grad_x = torch.empty_like(x) if wanted else None
    grad_taps = torch.empty_like(taps)
    tensors = {"x": x, "grad": grad, "out": grad_x, "kernel": taps, "grad_kernel": grad_taps}
    stages = begin(plan, "slide_back", "settle_kernel")
    run(plan, stages, tensors | {"geometry": geometry})
    return grad_x, grad_taps


@lru_cache(MOST_SHAPES)
def _plan(
    x: torch.Size,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dtype: torch.dtype,
    kernels: int,
) -> tuple[Plan, Tensor]:
    """How the work is cut, and `sliding.GEOMETRY`."""
    from spiritlevel.kernels.sliding import GEOMETRY

    N, C, *sides = x
    outer = [
        (side + 2 * pad - tap) // step + 1
        for side, pad, tap, step in zip(sides, padding, kernel, stride, strict=True)
    ]
    geometry = (*sides, *outer, *kernel, *stride, *padding)
    assert len(geometry) == len(GEOMETRY)
    most = _CACHED // (4 * (kernel[0] + 2) * sides[1]) // 32 * 32
    group = max(32, min(most, -(-C // 32) * 32))
    part = -(-N // min(N, _PARTS))
    parts = -(-N // part)
    plan = Plan(dtype, (N, C, 1, kernels, 1, part, parts), parts * -(-C // group), group)
    taps = kernel[0] * kernel[1]
    return plan.with_scratch(0, 0, 0, taps, 4 * taps * C * kernels), torch.tensor(geometry)


def _taps(weight: Tensor) -> Tensor:
    """(C, 1, h, w) -> (h w, C)."""
    return weight.detach().flatten(1).t().contiguous()


def _differentiable(ctx: Any, grad: Tensor, options: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """The same gradients by torch's own operations, so that they have gradients themselves."""
    x, weight = ctx.saved_tensors
    wants = [*ctx.needs_input_grad[:2], False]
    found = torch.ops.aten.convolution_backward(
        grad.float(), x.float(), weight, None, *options, wants
    )
    return None if found[0] is None else found[0].to(x.dtype), found[1]
