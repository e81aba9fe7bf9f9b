"""Squeeze-excitation as one operation that differentiates twice (Hu et al. 2018).

    y = x gate(expand(relu(reduce(mean of x)))),  the mean over the positions of a channel

Of the size of x there is nothing but x, y and their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.kernels.backend import MOST_SHAPES
from spiritlevel.kernels.gradients import differentiable, laid_out, left_to_torch, wanted
from spiritlevel.kernels.remade import remember

__all__ = ["GATES", "squeeze_excite"]

GATES: Mapping[str, Any] = {
    "hard": (F.hardsigmoid, lambda z, g: torch.where((z > -3) & (z < 3), g / 6, 0)),
    "clamped": (lambda z: z.clamp(0, 1), lambda z, g: torch.where((z >= 0) & (z <= 1), g, 0)),
}
"""Name -> the gate, and what goes back through it."""


def squeeze_excite(x: Tensor, weights: tuple[Tensor, ...], gate: str) -> Tensor:
    """y, by our kernels: x (N, C, H, W) channels-last and dense, float32 or bfloat16.

    `weights` are those of reduce (R, C, 1, 1) and (R,), and of expand (C, R, 1, 1) and (C,).
    """
    call: list[Tensor] = []
    y: Tensor = _SqueezeExcite.apply(x, *weights, gate, call)  # type: ignore[no-untyped-call]
    remember(y, _gated, x.detach(), *call)
    return y


class _SqueezeExcite(torch.autograd.Function):
    """(x, weight, bias, weight', bias', name of the gate, what it tells: the factor) -> y."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, weight2, bias2, name, call = inputs
        with torch.autocast("cpu", enabled=False):
            mean = _sums("squeeze", x) / (x.shape[2] * x.shape[3])
            hidden = F.relu(F.linear(mean, weight.flatten(1), bias))
            z = F.linear(hidden, weight2.flatten(1), bias2)
            factor = GATES[name][0](z)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, weight2, bias2, mean, hidden, z)
        ctx.name = name
        call.append(factor)
        return _gated(x, factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,), wants = grads, ctx.needs_input_grad
        if grad is None:
            return (None,) * len(wants)
        found = (_differentiable if left_to_torch(grad) else _gradients)(ctx, grad)
        return wanted([*found, None, None], wants)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, _, weight2, _, mean, hidden, z = ctx.saved_tensors
    grad, x = laid_out(grad, x), laid_out(x, x)
    gate, through = GATES[ctx.name]
    with torch.autocast("cpu", enabled=False):
        back = through(z, _sums("weigh", x, grad))
        inner = torch.ops.aten.threshold_backward(back @ weight2.flatten(1), hidden, 0)
        shift = (inner @ weight.flatten(1)) / (x.shape[2] * x.shape[3])
        return (
            _mapped("ungate", grad, gate(z), shift),
            (inner.t() @ mean).view_as(weight),
            inner.sum(0),
            (back.t() @ hidden).view_as(weight2),
            back.sum(0),
        )


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients by torch's own operations, so that they have gradients themselves."""
    inputs = ctx.saved_tensors[:5]
    with torch.enable_grad():
        x, weight, bias, weight2, bias2 = inputs
        hidden = F.relu(F.linear(x.float().mean((2, 3)), weight.flatten(1), bias))
        z = F.linear(hidden, weight2.flatten(1), bias2)
        y = x * GATES[ctx.name][0](z).to(x.dtype)[:, :, None, None]
        return differentiable(y, inputs, ctx.needs_input_grad[:5], grad)


def _gated(x: Tensor, factor: Tensor) -> Tensor:
    return _mapped("gate", x, factor, None)


def _sums(name: str, x: Tensor, grad: Tensor | None = None) -> Tensor:
    """Of x, or of x times grad, over the positions: float32 (N, C)."""
    total = torch.empty(x.shape[:2], dtype=torch.float32)
    _run(name, x, {"x": x, "grad": grad, "grad_weight": total})
    return total


def _mapped(name: str, x: Tensor, factor: Tensor, shift: Tensor | None) -> Tensor:
    """x factor + shift, both (N, C)."""
    out = torch.empty_like(x)
    given = {"x": x, "grad": x, "out": out, "weight": factor.contiguous(), "bias": shift}
    _run(name, x, given)
    return out


def _run(name: str, x: Tensor, tensors: Mapping[str, Tensor | None]) -> None:
    from spiritlevel.kernels import plans

    plan = _plan(x.shape, x.dtype)
    plans.run(plan, plans.begin(plan, name), tensors)


@lru_cache(MOST_SHAPES)
def _plan(shape: torch.Size, dtype: torch.dtype) -> Any:
    """An image with all of its channels."""
    from spiritlevel.kernels.plans import Plan

    N, C, height, width = shape
    cut = (N, C, height * width, 1, 1, 1, N)
    return Plan(dtype, cut, N, C).with_scratch(0, height, width, 0, 0)
