"""A sum of depthwise branches of one tensor, with their norms: the passes of `branched`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spiritlevel.kernels import branched, ghost
from spiritlevel.kernels.backend import MOST_SHAPES
from spiritlevel.kernels.branch_sums import Back, Norms, back_through, merged_parts, norms_of
from spiritlevel.kernels.plans import Plan, begin, run

__all__ = ["Cheap", "joined", "measured", "unjoined"]

_RING = 192 << 10
"""Bytes of what a chunk works in, at most: the second cache holds it."""


class Cheap(NamedTuple):
    """A sum of depthwise branches of p: those with a centre alone, (E, C), then those of nine taps,
    (B, C, 9); the norms of all, and the mean and variance of p; float64.

    `kernels` (1 + B, 9, C), the merged taps and those of the branches, and `shift`, what the merged
    ones lack, are float32: what the passes read.
    """

    centres: Tensor
    taps: Tensor
    norms: Norms
    own: tuple[Tensor, Tensor]
    kernels: Tensor
    shift: Tensor


@lru_cache(MOST_SHAPES)
def _of_images(shape: torch.Size, dtype: torch.dtype, branches: int) -> Plan:
    scratch = partial(branched.scratch, branches=branches)
    return ghost.by_images(shape, dtype, _RING, scratch, branches=branches)


def measured(
    y: Tensor,
    act: str,
    kernels: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    eps: Sequence[float],
) -> Cheap:
    """The branches of p = act(y), with the statistics that their norms take.

    Kernels of nine taps come last.
    """
    C = y.shape[1]
    small = [k for k in kernels if k is None or k[0].numel() == 1]
    large = [k.reshape(C, 9) for k in kernels[len(small) :] if k is not None]
    one = torch.ones(C, dtype=torch.float32)
    centres = torch.stack([one if k is None else k.reshape(C) for k in small]) if small else None
    passed = torch.zeros((1 + len(large), 9, C), dtype=torch.float32)
    passed[0, 4] = 1  # p itself
    if large:
        torch.stack([k.t() for k in large], out=passed[1:])
    plan = _of_images(y.shape, y.dtype, len(large))
    parts = torch.empty((plan.cut[-1], len(passed), 2, C), dtype=torch.float64)
    given = {"x": y, "kernel": passed, "partials": parts}
    run(plan, begin(plan, "tally_branches"), given, floor=ghost.FLOORS[act])
    means, variances = merged_parts(parts, _counts(plan))
    factor = parts.new_empty((0, C)) if centres is None else centres.double()
    mean = torch.cat([factor * means[0], means[1:]])
    var = torch.cat([factor.square() * variances[0], variances[1:]])
    norms = norms_of(mean, var, weights, biases, eps)
    taps, scale = passed[1:].mT.double(), norms.scale()
    merged = (scale[len(small) :, :, None] * taps).sum(0).t()
    merged[4] += (scale[: len(small)] * factor).sum(0)
    passed[0] = merged
    return Cheap(factor, taps, norms, (means[0], variances[0]), passed, norms.shift().float())


@lru_cache(MOST_SHAPES)
def _counts(plan: Plan) -> Tensor:
    """Values of a channel in each part."""
    N, _, positions, _, _, images, parts = plan.cut
    seen = [min(images, N - part * images) * positions for part in range(parts)]
    return torch.tensor(seen, dtype=torch.float64)


def joined(
    y: Tensor, cheap: Cheap, act: str, residual: Tensor | None
) -> tuple[tuple[Any, ...], Tensor]:
    """[p, act(sum of the branches of p)] + residual; and what `ghost.again` makes it of."""
    taps = cheap.kernels[0].t().reshape(-1, 1, 3, 3)
    none = torch.zeros(y.shape[1], dtype=torch.float64)
    one = none + 1
    given = (y.detach(), None, None, taps, None, cheap.shift, act, (0.0, 0.0), none, one, none, one)
    return given, ghost.again(*given, residual=residual)


class Unjoined(NamedTuple):
    """What `unjoined` gives: gradients of y, their sum, of the branches' kernels, and the norms'.

    Those of kernels are float32, (E, C) and (B, C, 9).
    """

    grad: Tensor
    total: Tensor
    centres: Tensor
    taps: Tensor
    norms: Back


def unjoined(grad: Tensor, y: Tensor, act: str, cheap: Cheap) -> Unjoined:
    """Back through `joined`, and through the statistics that `measured` took."""
    centres, taps, norms, (mean, var), kernels, shift = cheap
    C, E, count = y.shape[1], len(centres), y.numel() // y.shape[1]
    plan = _of_images(y.shape, y.dtype, len(taps))
    sums = torch.empty((plan.cut[-1], len(kernels), 9, C), dtype=torch.float32)
    totals = torch.empty((plan.cut[-1], C), dtype=torch.float64)
    given = {"x": y, "grad": grad, "kernel": kernels, "bias": shift}
    given |= {"kernel_sums": sums, "partials": totals}
    run(plan, begin(plan, "reduce_branches"), given, floor=ghost.FLOORS[act])
    total, at_taps = totals.sum(0), sums[:, 0].sum(0, dtype=torch.float64).t()
    products = torch.cat([centres * at_taps[:, 4], (taps * at_taps).sum(2)]) - norms.mean * total
    back = back_through(norms, total, products, count)
    through = torch.empty_like(y)
    given |= {"sums": _table(cheap, back), "grad_residual": through}
    run(plan, begin(plan, "unjoin_branches"), given, floor=ghost.FLOORS[act])
    scale, beyond = norms.scale(), sums[:, 1:].sum(0, dtype=torch.float64).mT
    moved = count * (back.k2[:E] * centres * var + back.k1[:E] * mean)
    grad_centres = (scale[:E] * at_taps[:, 4] + moved).float()
    grad_taps = (scale[E:, :, None] * at_taps + beyond).float()
    return Unjoined(through, totals.sum(0), grad_centres, grad_taps, back)


def _table(cheap: Cheap, back: Back) -> Tensor:
    """`branched` has its rows; those of p itself are what its norms there send back together."""
    centres, E = cheap.centres, len(cheap.centres)
    k1 = torch.cat([back.k1[E:], (back.k1[:E] * centres).sum(0, keepdim=True)])
    k2 = torch.cat([back.k2[E:], (back.k2[:E] * centres.square()).sum(0, keepdim=True)])
    mean = torch.cat([cheap.norms.mean[E:], cheap.own[0][None]])
    high = mean.float()
    return torch.stack([high, (k1 - (mean - high) * k2).float(), k2.float()], 1)
