"""A sum of 1x1 branches of one tensor, with their norms, by no product but that of their sum.

A branch's statistics follow from the mean and covariance of what it reads: W mean, and the diagonal
of W cov W'. With them the sum of the branches is one map of it; `mapped` has the passes. Where that
would lose digits, there is none: see `covered`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from spiritlevel.kernels import ghost, mapped
from spiritlevel.kernels.backend import MOST_SHAPES
from spiritlevel.kernels.branch_sums import Back, Norms, back_through, norms_of
from spiritlevel.kernels.plans import Plan, begin, run

__all__ = ["Moments", "covered", "map_back", "mapped_sum", "pays"]

_CENTRED = 96
"""Rows whose mean is the centre."""
_DEEP = 8
"""Positions for each channel, at least: a matrix of the channels is then small beside the rows."""
_LOST = 0.15
"""Of what is summed up in float32, how many times its own size a variance may be the difference of:
so many times the root of the positions, as over more of them more of the rounding cancels out."""


class Moments(NamedTuple):
    """Of what is read: a centre, float32; in float64 how far the mean is from it, and of each
    branch's weights (n C', C) their product with the covariance."""

    centre: Tensor
    off: Tensor
    products: Tensor


@lru_cache(MOST_SHAPES)
def _plan(shape: torch.Size, channels: int, dtype: torch.dtype, sums: int) -> Plan:
    """`sums`: numbers of which each part has its own."""
    rows, inner = shape[0] * shape[2] * shape[3], shape[1]
    few, part, parts = ghost.by_rows(rows, inner + channels, sums)
    plan = Plan(dtype, (rows, channels, 1, 1, 1, part, parts), parts, channels)
    return plan.with_scratch(mapped.scratch(few, channels, inner), few, 0, inner, 0)


def pays(x: Tensor, kernels: Sequence[Tensor]) -> bool:
    """Whether the moments of x take less than the products do."""
    outer, inner = kernels[0].shape[:2]
    return inner <= (len(kernels) - 1) * outer and x.numel() >= _DEEP * inner**2


def covered(
    x: Tensor,
    kernels: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    eps: Sequence[float],
) -> tuple[Norms, Moments] | None:
    """The norms of 1x1 convolutions of x, by its moments; None where their digits are not enough.

    What is summed up in float32 is off by its rounding, W for W; a variance is to be no small
    difference of that.
    """
    inner = x.shape[1]
    rows = x.movedim(1, -1).reshape(-1, inner)
    centre = rows[:_CENTRED].float().mean(0)
    plan = _plan(x.shape, inner, x.dtype, inner * inner)
    sums = torch.empty((plan.cut[-1], inner), dtype=torch.float64)
    squares = torch.empty((plan.cut[-1], inner, inner), dtype=torch.float32)
    given = {"x": x, "bias_before": centre, "partials": sums, "kernel_sums": squares}
    run(plan, begin(plan, "gram"), given)
    off = sums.sum(0) / len(rows)
    lower = squares.sum(0, dtype=torch.float64).tril_() / len(rows)
    spread = lower.diagonal().clone()
    covariance = lower + lower.tril(-1).t() - off.outer(off)
    weight = torch.cat([*kernels]).flatten(1).double()
    products = weight @ covariance
    n = len(kernels)
    mean = (weight @ (centre + off)).view(n, -1)
    var = (products * weight).sum(1).view(n, -1)
    norms = norms_of(mean, var, weights, biases, eps)
    at_stake = (weight.square() @ spread).view(n, -1)
    enough = bool((at_stake <= _LOST * len(rows) ** 0.5 * (var + norms.eps)).all())
    return (norms, Moments(centre, off, products)) if enough else None


def mapped_sum(x: Tensor, kernels: Sequence[Tensor], norms: Norms, moments: Moments) -> Tensor:
    """The sum of the norms of the convolutions."""
    merged, (N, _, height, width) = _merged(kernels, norms), x.shape
    shift = norms.bias.sum(0) - merged @ moments.off
    table = torch.cat([merged.t(), shift[None]]).float()
    shape = N, len(merged), height, width
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    plan = _plan(x.shape, len(merged), x.dtype, 0)
    given = {"x": x, "bias_before": moments.centre, "kernel": table, "out": y}
    run(plan, begin(plan, "map"), given)
    return y


def _merged(kernels: Sequence[Tensor], norms: Norms) -> Tensor:
    """The weights of the sum, in float64."""
    weight = torch.stack([*kernels]).flatten(2).double()
    return (norms.scale()[..., None] * weight).sum(0)


def map_back(
    grad: Tensor,
    total: Tensor,
    x: Tensor,
    kernels: Sequence[Tensor],
    norms: Norms,
    moments: Moments,
    wanted: bool,
) -> tuple[Tensor | None, Tensor, Back]:
    """Gradients of x, of the kernels one after the other, and of the norms; `total`: grad's sum."""
    (n, C), inner, count = norms.mean.shape, x.shape[1], x.numel() // x.shape[1]
    plan = _plan(x.shape, C, x.dtype, C * inner)
    parts = torch.empty((plan.cut[-1], C, inner), dtype=torch.float32)
    given = {"x": x, "grad": grad, "bias_before": moments.centre}
    run(plan, begin(plan, "map_weights"), given | {"kernel_sums": parts})
    apart = parts.sum(0, dtype=torch.float64) - total.outer(moments.off)
    weight = torch.stack([*kernels]).flatten(2).double()
    back = back_through(norms, total, (weight * apart).sum(2), count)
    through = count * back.k2[..., None] * moments.products.view(n, C, inner)
    grad_weight = (norms.scale()[..., None] * apart + through).float().view(n * C, inner, 1, 1)
    if not wanted:
        return None, grad_weight, back
    flat = weight.flatten(0, 1)
    square = (back.k2.view(-1, 1) * flat).t() @ flat
    shift = back.k1.flatten() @ flat - square @ moments.off
    table = torch.cat([square, _merged(kernels, norms), shift[None]]).float()
    grad_x = torch.empty_like(x)
    plan = _plan(x.shape, C, x.dtype, 0)
    run(plan, begin(plan, "map_back"), given | {"kernel": table, "out": grad_x})
    return grad_x, grad_weight, back
