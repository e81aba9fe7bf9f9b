"""The steps of batch normalization one by one, for a batch that is a part of one.

Who knows only its own part must ask others between them: after `moments` for theirs, after
`reduced` for their sums. Each step runs by the kernels of `cpu`, which says what it computes, or
of `gpu`, or in torch's own operations, on any device, in the same arithmetic: float32 (float64 for
float64), the mean as two numbers, what is per channel in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spiritlevel.kernels.activations import Activation
from spiritlevel.kernels.backend import number_of
from spiritlevel.kernels.ops import OURS, forward, kernels_of, laid_out_as

__all__ = ["Step", "applied", "descended", "moments", "reduced"]


class Step(NamedTuple):
    """What the steps after `moments` are told: numbers of channels are (C,), of all parts.

    `mean` and `var`, biased, are float64; weight and bias may be missing.
    """

    kernels: str
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    act: Activation
    eps: float


def moments(x: Tensor, kernels: str) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float64 (C,), of an x that is not empty."""
    if kernels in OURS:
        found: tuple[Tensor, Tensor] = kernels_of(kernels).statistics(x)
        return found
    axes = _axes(x)
    wide = x.to(number_of(x.dtype))
    high = wide.mean(axes, keepdim=True)
    # Around a mean as near as these numbers come; what it is beside is small.
    var, low = torch.var_mean(wide - high, axes, correction=0)
    return high.flatten().double() + low.double(), var.double()


def applied(x: Tensor, residual: Tensor | None, step: Step) -> Tensor:
    """act((x - mean) / sqrt(var + eps) * weight + bias + residual), residual like x."""
    if step.kernels in OURS:
        channels = (step.weight, step.bias, residual, step.mean, step.var)
        return forward(step.kernels, x, *channels, *step.act, step.eps)[0]
    centred, scale, shift = _affine(x, step)
    z = torch.addcmul(shift, centred, scale)
    return step.act(z if residual is None else z + residual).to(x.dtype)


def reduced(
    grad: Tensor, x: Tensor, residual: Tensor | None, y: Tensor | None, step: Step
) -> tuple[Tensor, Tensor, Tensor | None]:
    """This part's gradients of weight and bias, and the gradient before the activation.

    The last is None where the kernels find it again. `y` takes the place of the residual where the
    activation is a relu.
    """
    if step.kernels in OURS:
        through = None if residual is None else laid_out_as(x, residual, step.kernels)
        given = (step.weight, step.bias, through, y, step.mean, step.var)
        like_x, ours = laid_out_as(x, grad, step.kernels), kernels_of(step.kernels)
        found: tuple[Tensor, Tensor, Tensor | None]
        found = ours.reduced(like_x, x, *given, *step.act, step.eps)
        return found
    before = _before(grad, x, residual, y, step)
    mean, axes = step.mean, _axes(x)
    high, deviation = mean.to(number_of(x.dtype)), (step.var + step.eps).sqrt()
    centred = x.to(number_of(x.dtype)) - high.view(_view(x))
    total = before.sum(axes, dtype=torch.float64)
    product = (before * centred).sum(axes, dtype=torch.float64)
    return (product - (mean - high) * total) / deviation, total, before


def descended(
    grad: Tensor,
    x: Tensor,
    before: Tensor | None,
    grad_weight: Tensor,
    grad_bias: Tensor,
    count: float,
    step: Step,
) -> Tensor:
    """The gradient of x, given those of weight and bias over all `count` values of a channel.

    `before` is what `reduced` gave.
    """
    number = number_of(x.dtype)
    if step.kernels in OURS:
        channels = (step.weight, step.bias, before, step.mean, step.var)
        sums = [each.to(number).contiguous() for each in (grad_weight, grad_bias)]
        act, like_x = step.act, laid_out_as(x, grad, step.kernels)
        last = step.eps, sums[0], sums[1], count
        through: Tensor = kernels_of(step.kernels).descended(like_x, x, *channels, *act, *last)
        return through
    assert before is not None
    factor, deviation = _factor(step), (step.var + step.eps).sqrt()
    slope = -factor * grad_weight / (count * deviation)
    start = -factor * grad_bias / count - (step.mean - step.mean.to(number)) * slope
    centred, scale, _ = _affine(x, step)
    slope, start = (each.to(number).view(_view(x)) for each in (slope, start))
    return torch.addcmul(torch.addcmul(start, centred, slope), before, scale).to(x.dtype)


def _before(
    grad: Tensor, x: Tensor, residual: Tensor | None, y: Tensor | None, step: Step
) -> Tensor:
    """The gradient before the activation, in the numbers that are computed with."""
    grad = grad.to(number_of(x.dtype))
    if y is not None:
        return grad * (y > 0)
    if step.act.name == "identity":
        return grad
    with torch.enable_grad():
        centred, scale, shift = _affine(x, step)
        z = torch.addcmul(shift, centred, scale)
        z = (z if residual is None else z + residual).detach().requires_grad_()
        (before,) = torch.autograd.grad(step.act(z), z, grad)
    return before


def _affine(x: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """x - high, a and b, as `cpu` has them."""
    number, factor = number_of(x.dtype), _factor(step)
    high = step.mean.to(number)
    shift = -(step.mean - high) * factor
    shift = shift if step.bias is None else shift + step.bias.double()
    high, scale, shift = (each.to(number).view(_view(x)) for each in (high, factor, shift))
    return x.to(number) - high, scale, shift


def _factor(step: Step) -> Tensor:
    factor = (step.var + step.eps).rsqrt()
    return factor if step.weight is None else factor * step.weight.double()


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


def _view(x: Tensor) -> Any:
    return [1, -1, *[1] * (x.dim() - 2)]
