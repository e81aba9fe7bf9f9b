"""A Ghost module as one operation that differentiates twice: see `ghost`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.kernels import reference
from spiritlevel.kernels.activations import Activation
from spiritlevel.kernels.backend import Update
from spiritlevel.kernels.gradients import differentiable, laid_out, left_to_torch, wanted

__all__ = ["Norm", "ghost_halves"]


class Norm(NamedTuple):
    """A batch norm in training: weight and bias (C,) or none, and what is updated in place."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    running: Update | None = None


def ghost_halves(
    x: Tensor,
    weight: Tensor | None,
    first: Any,
    taps: Tensor,
    second: Any,
    act: Activation,
    residual: Tensor | None,
    kernels: str = "cpu",
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """[p, act(bn'(p * taps))] + residual with p = act(bn(y)), by `kernels`; with y, statistics.

    y is the 1x1 convolution of x with `weight`, or x itself where that is None. As `ghost.forward`
    has it, whose `Norm` first and second are; the output has gradients for x, the weights and
    biases, taps and residual.
    """
    call = _Call(first, second, act, kernels)
    given = (x, weight, first.weight, first.bias, taps, second.weight, second.bias, residual)
    out = _Halves.apply(*given, call)  # type: ignore[no-untyped-call]
    return out, call.y, call.statistics


class _Call:
    """What a forward pass is told beside tensors, and what it tells."""

    def __init__(self, first: Any, second: Any, act: Activation, kernels: str) -> None:
        self.norms, self.act, self.kernels = (first, second), act, kernels
        self.y: Any = None
        self.statistics: Any = None


class _Halves(torch.autograd.Function):
    """(x, weight, bn's weight, bias, taps, bn's weight', bias', residual, call) -> output."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, call = inputs
        ours = _kernels_of(call.kernels)
        x, weight, _, _, taps, _, _, residual = tensors
        first, second = call.norms
        if residual is not None:
            residual = laid_out(residual, x)
        y, before, *of_product = (x, None) if weight is None else ours.product(x, weight, first)
        given = first, taps, second, call.act.name, residual, before
        out, call.statistics, *kept = ours.forward(y, *given)
        call.y = y.detach()
        ctx.set_materialize_grads(False)
        y_kept = None if weight is None else y
        ctx.save_for_backward(*tensors[:-1], y_kept, *call.statistics, *of_product, *kept)
        ctx.eps, ctx.act, ctx.kernels = (first.eps, second.eps), call.act, call.kernels
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,), wants = grads, ctx.needs_input_grad
        if grad is None:
            return (None,) * len(wants)
        found = (_differentiable if left_to_torch(grad) else _gradients)(ctx, grad)
        return wanted([*found, grad, None], wants)


def _kernels_of(name: str) -> Any:
    if name == "gpu":
        from spiritlevel.kernels import gpu_ghost

        return gpu_ghost
    from spiritlevel.kernels import ghost

    return ghost


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ours = _kernels_of(ctx.kernels)
    x, weight, norm, bias, taps, norm2, bias2, y, *rest = ctx.saved_tensors
    statistics, kept = rest[:4], rest[4:]
    x, y = laid_out(x, x), None if y is None else laid_out(y, x)
    first, second = Norm(norm, bias, ctx.eps[0]), Norm(norm2, bias2, ctx.eps[1])
    raw = x if y is None else y
    given = laid_out(grad, x), raw, first, taps, second, ctx.act.name, tuple(statistics), *kept
    through, *of_norm, grad_taps, grad_norm2, grad_bias2 = ours.backward(*given)
    before = tuple(statistics[:2])
    grad_x: Tensor | None
    grad_weight: Tensor | None = None
    if y is None:
        grad_x = ours.descended(through, x, first, before, *of_norm)
    else:
        norm_grads, wants_x = (of_norm[0], of_norm[1]), ctx.needs_input_grad[0]
        grad_x, grad_weight = ours.product_back(
            through, x, weight, y, first, before, norm_grads, wants_x, *kept
        )
    return grad_x, grad_weight, *of_norm, grad_taps, grad_norm2, grad_bias2


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients by torch's own operations, so that they have gradients themselves."""
    inputs, (eps, eps2) = ctx.saved_tensors[:7], ctx.eps
    with torch.enable_grad():
        x, weight, norm, bias, taps, norm2, bias2 = inputs
        y = x if weight is None else F.conv2d(x, weight.to(x.dtype))
        p = ctx.act(reference.batch_norm(y, norm, bias, eps=eps))
        c = F.conv2d(p, taps.to(p.dtype), None, 1, 1, 1, len(taps))
        out = torch.cat([p, ctx.act(reference.batch_norm(c, norm2, bias2, eps=eps2))], 1)
        return differentiable(out, inputs, ctx.needs_input_grad[:7], grad)
