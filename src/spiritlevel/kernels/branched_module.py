"""A Ghost module whose convolutions are sums of branches, as one operation: see `branched`.

Either convolution is a sum of batch norms of convolutions of one tensor: 1x1 in the first half,
depthwise 3x3, 1x1 and none at all in the second (Liu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.kernels import reference
from spiritlevel.kernels.activations import Activation
from spiritlevel.kernels.gradients import differentiable, laid_out, left_to_torch, wanted
from spiritlevel.kernels.remade import remember

__all__ = ["Branch", "branch_of", "branched_halves", "each_of", "summed"]


class Branch(NamedTuple):
    """A convolution's weight, or none, and the weight, bias and eps of its batch norm."""

    kernel: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def branched_halves(
    x: Tensor,
    first: Sequence[Branch],
    second: Sequence[Branch],
    act: Activation,
    residual: Tensor | None,
    again: bool = False,
) -> tuple[Tensor, Any]:
    """[p, act(sum of `second` of p)] + residual, p = act(sum of `first` of x), by our kernels.

    x (N, C', H, W), channels-last and dense, float32 or bfloat16; kernels of `first` (C, C', 1, 1),
    of `second` (C, 1, 1, 1) or none, then (C, 1, 3, 3); norms (C,); all float32. act "relu" or
    "identity". Differentiates twice. `again`: who reads the output may have it made again. With it
    comes what is told of the pass: `statistics`, mean and biased variance of each branch, float64.
    """
    call = _Call(tuple(b.eps for b in first), tuple(b.eps for b in second), act)
    flat = [t for branch in (*first, *second) for t in branch[:3]]
    out: Tensor = _Branched.apply(x, residual, call, *flat)  # type: ignore[no-untyped-call]
    if again:
        from spiritlevel.kernels import ghost

        remember(out, ghost.again, *call.again)
    return out, call


class _Call:
    """What a forward pass is told beside tensors, and what it tells."""

    def __init__(self, first: Any, second: Any, act: Activation) -> None:
        self.eps, self.act = (first, second), act
        self.statistics: Any = None
        self.y: Any = None
        self.again: Any = None


class _Branched(torch.autograd.Function):
    """(x, residual, call, kernel, weight and bias of each branch) -> output."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        from spiritlevel.kernels import branch_maps, branch_products, branch_taps

        x, residual, call, *flat = inputs
        first, second = _halves(call.eps, flat)
        if residual is not None:
            residual = laid_out(residual, x)
        raw = None
        moments = branch_maps.covered(x, *first) if branch_maps.pays(x, first[0]) else None
        if moments is not None:
            y = branch_maps.mapped_sum(x, first[0], *moments)
            norms = moments[0]
        else:
            raw, norms = branch_products.products(x, *first)
            y = branch_products.mixed(raw, norms)
        of_cheap = branch_taps.measured(y, call.act.name, *second)
        call.again, out = branch_taps.joined(y, of_cheap, call.act.name, residual)
        both = zip(norms[:2], of_cheap.norms[:2], strict=True)
        call.statistics = tuple(torch.cat(each) for each in both)
        call.y = y.detach()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, raw, y, *flat)
        ctx.eps, ctx.act, ctx.of_cheap = call.eps, call.act, of_cheap
        ctx.moments = (norms,) if moments is None else moments
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,), wants = grads, ctx.needs_input_grad
        if grad is None:
            return (None,) * len(wants)
        grad_x, *each = (_differentiable if left_to_torch(grad) else _gradients)(ctx, grad)
        return wanted([grad_x, grad, None, *each], wants)


def _halves(eps: Any, flat: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Of either half: kernels, weights, biases and eps of its branches."""
    first, second = eps
    own, others = flat[: 3 * len(first)], flat[3 * len(first) :]
    return (*(own[at::3] for at in range(3)), first), (*(others[at::3] for at in range(3)), second)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    from spiritlevel.kernels import branch_maps, branch_products, branch_taps

    x, raw, y, *flat = ctx.saved_tensors
    x, y = laid_out(x, x), laid_out(y, x)
    (kernels, *_), (others, *_) = _halves(ctx.eps, flat)
    of_cheap = branch_taps.unjoined(laid_out(grad, x), y, ctx.act.name, ctx.of_cheap)
    given = kernels, *ctx.moments, ctx.needs_input_grad[0]
    if raw is None:
        found = branch_maps.map_back(of_cheap.grad, of_cheap.total, x, *given)
    else:
        found = branch_products.products_back(of_cheap.grad, x, laid_out(raw, x), *given)
    return _as_given(found, kernels, of_cheap, others)


def _as_given(found: Any, kernels: Any, of_cheap: Any, others: Any) -> tuple[Tensor | None, ...]:
    """The gradients, in the order of what they are of."""
    grad_x, weight, back = found
    each: list[Tensor | None] = [grad_x]
    centres, taps, norms = of_cheap.centres, of_cheap.taps, of_cheap.norms
    small = [
        own if k is None else own.view(k.shape) for k, own in zip(others, centres, strict=False)
    ]
    large = [own.view(-1, 1, 3, 3) for own in taps]
    for grads, of in ((weight.chunk(len(kernels)), back), ([*small, *large], norms)):
        each += [t for three in zip(grads, *each_of(of), strict=True) for t in three]
    return tuple(each)


def each_of(back: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The gradients of the norms' weights and biases, in float32."""
    return back.weight.float().unbind(), back.bias.float().unbind()


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients by torch's own operations, so that they have gradients themselves."""
    x, _, _, *flat = ctx.saved_tensors
    inputs, wants = (x, *flat), (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
    with torch.enable_grad():
        first, second = _halves(ctx.eps, flat)
        p = ctx.act(summed(x, *first))
        out = torch.cat([p, ctx.act(summed(p, *second))], 1)
        return differentiable(out, inputs, wants, grad)


def summed(x: Tensor, kernels: Any, weights: Any, biases: Any, eps: Any, stride: int = 1) -> Tensor:
    """The sum of the branches of x, by torch's own operations."""
    found = [
        reference.batch_norm(branch_of(x, kernel, stride), weight, bias, eps=own)
        for kernel, weight, bias, own in zip(kernels, weights, biases, eps, strict=True)
    ]
    total = found[0]
    for one in found[1:]:
        total = total + one
    return total


def branch_of(x: Tensor, kernel: Tensor | None, stride: int = 1) -> Tensor:
    """x by the convolution of a branch, if it has one."""
    if kernel is None:
        return x
    groups = x.shape[1] // kernel.shape[1]
    return F.conv2d(x, kernel.to(x.dtype), None, stride, kernel.shape[-1] // 2, 1, groups)
