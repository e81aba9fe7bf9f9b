"""A sum of branches of one tensor, with their norms, each of which has an output: see `mixed`.

Those of 1x1 convolutions are one product, whose channels are theirs side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from spiritlevel.kernels import ghost
from spiritlevel.kernels.backend import MOST_SHAPES
from spiritlevel.kernels.branch_sums import Back, Norms, back_through, norms_of
from spiritlevel.kernels.ghost_module import Norm
from spiritlevel.kernels.plans import Plan, begin, run

__all__ = ["mixed", "products", "products_back", "unmixed", "unmixed_all"]

_BLOCK, _PARTS = 64, 32
"""Rows that are mixed at a time, and parts of all rows, at most."""


@lru_cache(MOST_SHAPES)
def _of_rows(shape: torch.Size, dtype: torch.dtype, branches: int, apart: bool) -> Plan:
    N, C, height, width = shape
    rows = N * height * width
    part = -(-rows // min(_PARTS, -(-rows // _BLOCK)) // _BLOCK) * _BLOCK
    parts = -(-rows // part)
    plan = Plan(dtype, (rows, C, 1, branches if apart else 1, 1, part, parts), parts, C)
    return plan.with_scratch(4 * C, _BLOCK, 0, branches, 0)


def products(
    x: Tensor,
    kernels: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    eps: Sequence[float],
) -> tuple[Tensor, Norms]:
    """1x1 convolutions of x side by side, (N, n C, H, W), and their norms."""
    raw, found = ghost.product(x, torch.cat([*kernels]), Norm(None, None, 0.0))
    mean, var = (each.view(len(kernels), -1) for each in found)
    return raw, norms_of(mean, var, weights, biases, eps)


def products_back(
    grad: Tensor,
    x: Tensor,
    raw: Tensor,
    kernels: Sequence[Tensor],
    norms: Norms,
    wanted: bool,
) -> tuple[Tensor | None, Tensor, Back]:
    """Gradients of x, of the kernels one after the other, and of the norms."""
    back = unmixed(grad, raw, norms)
    norm = Norm(norms.weight.float().flatten(), None, 0.0)
    statistics = norms.mean.flatten(), (norms.var + norms.eps).flatten()
    of_norm = back.weight.float().flatten(), back.bias.float().flatten()
    weight = torch.cat([*kernels])
    return *ghost.product_back(grad, x, weight, raw, norm, statistics, of_norm, wanted), back


def mixed(raw: Tensor, norms: Norms) -> Tensor:
    """The sum of the norms of what lies side by side in `raw`, or (n, N, C, H, W) one by one."""
    n, C = norms.mean.shape
    shape = raw.shape[-4], C, *raw.shape[-2:]
    y = torch.empty(shape, dtype=raw.dtype, memory_format=torch.channels_last)
    scale, mean = norms.scale(), norms.mean.float()
    shift = (norms.bias - scale * (norms.mean - mean)).sum(0).float()
    table = torch.cat([mean, scale.float()])
    plan = _of_rows(y.shape, y.dtype, n, raw.dim() == 5)
    run(plan, begin(plan, "mix"), {"x": raw, "out": y, "sums": table, "bias": shift})
    return y


def unmixed(grad: Tensor, raw: Tensor, norms: Norms) -> Back:
    """What goes back through the norms, of which `mixed` made the sum."""
    n, C = norms.mean.shape
    plan = _of_rows(grad.shape, grad.dtype, n, raw.dim() == 5)
    mean = norms.mean.float()
    parts = torch.empty((plan.cut[-1], n + 1, C), dtype=torch.float64)
    given = {"x": raw, "grad": grad, "sums": mean, "partials": parts}
    run(plan, begin(plan, "unmix"), given)
    *_, total = found = parts.sum(0)
    products = found[:-1] - (norms.mean - mean) * total
    return back_through(norms, total, products, grad.numel() // C)


def unmixed_all(grad: Tensor, raw: Tensor, norms: Norms, back: Back) -> Tensor:
    """The gradient of raw (n, N, C, H, W)."""
    out, mean = torch.empty_like(raw), norms.mean.float()
    k1 = back.k1 - back.k2 * (norms.mean - mean)
    table = torch.cat([mean, norms.scale().float(), k1.float(), back.k2.float()])
    plan = _of_rows(grad.shape, grad.dtype, len(raw), True)
    run(plan, begin(plan, "unmix_all"), {"x": raw, "grad": grad, "out": out, "sums": table})
    return out
