"""A sum of depthwise branches that halve a map, each with its norm, as one operation.

What the branches give has a quarter of the input's positions, and is kept; of the input's size
there is nothing but itself and its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spiritlevel.kernels.branched_module import Branch, each_of, summed
from spiritlevel.kernels.gradients import differentiable, laid_out, left_to_torch, wanted

__all__ = ["branched_depthwise"]


def branched_depthwise(
    x: Tensor, branches: Sequence[Branch], side: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The sum of the branches of x, by our kernels; means and biased variances, (n, C), float64.

    x (N, C, H, W), channels-last and dense, float32 or bfloat16; kernels (C, 1, side, side) or
    (C, 1, 1, 1), of stride 2, padded by half of their side, which is odd. Differentiates twice.
    """
    call: list[Any] = [tuple(branch.eps for branch in branches), side]
    flat = [t for branch in branches for t in branch[:3]]
    y: Tensor = _Halved.apply(x, call, *flat)  # type: ignore[no-untyped-call]
    return y, call[2]


class _Halved(torch.autograd.Function):
    """(x, call, kernel, weight and bias of each branch) -> y."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        from spiritlevel.kernels import branch_products, convolutions, cpu
        from spiritlevel.kernels.branch_sums import norms_of

        x, call, *flat = inputs
        eps, side = call
        raw = convolutions.slide(x, _taps(flat[::3], side), *_geometry(side))
        found = [cpu.statistics(each) for each in raw]
        mean, var = (torch.stack(each) for each in zip(*found, strict=True))
        norms = norms_of(mean, var, flat[1::3], flat[2::3], eps)
        call.append((mean, var))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, raw, *flat)
        ctx.norms, ctx.eps, ctx.side = norms, eps, side
        return branch_products.mixed(raw, norms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,), wants = grads, ctx.needs_input_grad
        if grad is None:
            return (None,) * len(wants)
        grad_x, *each = (_differentiable if left_to_torch(grad) else _gradients)(ctx, grad)
        return wanted([grad_x, None, *each], wants)


def _geometry(side: int) -> tuple[tuple[int, int], ...]:
    """The kernel, the stride and the padding."""
    return (side, side), (2, 2), (side // 2, side // 2)


def _taps(kernels: Sequence[Tensor], side: int) -> Tensor:
    """(n, side², C): smaller kernels stand in the centre."""
    taps = torch.zeros((len(kernels), side * side, len(kernels[0])), dtype=torch.float32)
    for own, kernel in zip(taps, kernels, strict=True):
        inner = kernel.detach().flatten(1).t()
        own[len(own) // 2 :][:1].copy_(inner) if len(inner) == 1 else own.copy_(inner)
    return taps


def _gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    from spiritlevel.kernels import branch_products, convolutions

    x, raw, *flat = ctx.saved_tensors
    grad, x = laid_out(grad, x), laid_out(x, x)
    raw = raw.movedim(2, -1).contiguous().movedim(-1, 2)
    kernels = flat[::3]
    back = branch_products.unmixed(grad, raw, ctx.norms)
    through = branch_products.unmixed_all(grad, raw, ctx.norms, back)
    given = _taps(kernels, ctx.side), *_geometry(ctx.side), ctx.needs_input_grad[0]
    grad_x, grad_taps = convolutions.slide_back(through, x, *given)
    found = [grad_x]
    for kernel, own, *of_norm in zip(kernels, grad_taps, *each_of(back), strict=True):
        part = own if kernel[0].numel() > 1 else own[len(own) // 2, None]
        found += [part.t().reshape(kernel.shape), *of_norm]
    return found


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients by torch's own operations, so that they have gradients themselves."""
    x, _, *flat = ctx.saved_tensors
    inputs, wants = (x, *flat), (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
    with torch.enable_grad():
        y = summed(x, flat[::3], flat[1::3], flat[2::3], ctx.eps, stride=2)
        return differentiable(y, inputs, wants, grad)
