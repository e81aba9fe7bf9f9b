"""The running statistics of one batch norm: set to what it was fed, and how far they moved."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.lent.pooled import Pooled
from spiritlevel.nn.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d

__all__ = ["fit", "moved", "set_statistics", "tracks", "type_name"]


def tracks(norm: nn.Module) -> bool:
    """Whether it holds a running mean and a running variance."""
    held = (getattr(norm, name, None) for name in ("running_mean", "running_var"))
    return all(isinstance(each, Tensor) for each in held)


@torch.no_grad()
def set_statistics(norm: Any, pooled: Pooled, calls: int) -> None:
    """In place: the mean, the variance, unbiased as torch has it, and the counter, to `calls`.

    The counter of a batch renormalization stays: its bounds grow by it.
    """
    norm.running_mean.copy_(pooled.mean.view_as(norm.running_mean))
    norm.running_var.copy_(pooled.unbiased.view_as(norm.running_var))
    counter = getattr(norm, "num_batches_tracked", None)
    clock = isinstance(norm, BatchRenorm1d | BatchRenorm2d | BatchRenorm3d)
    if isinstance(counter, Tensor) and not clock:
        counter.fill_(calls)


def fit(norm: Any, pooled: Pooled) -> bool:
    """Whether the numbers are finite in the type that the layer keeps them in."""
    mean, var = pooled.mean.to(norm.running_mean.dtype), pooled.unbiased.to(norm.running_var.dtype)
    return bool((mean.isfinite() & var.isfinite()).all())


def moved(norm: Any, pooled: Pooled) -> tuple[float, float, float]:
    """The largest shift of the mean, in the deviations that eval() divided by, and the least and
    the largest factor of the variance with `eps`; infinite where the old ones were not finite."""
    mean, var = (t.detach().double().cpu().flatten() for t in (norm.running_mean, norm.running_var))
    eps = float(getattr(norm, "eps", 0.0))
    shift = (pooled.mean - mean).abs() / (var + eps).sqrt()
    factor = (pooled.unbiased + eps) / (var + eps)
    shift, factor = (t.nan_to_num(math.inf, math.inf, -math.inf) for t in (shift, factor))
    return float(shift.max()), float(factor.min()), float(factor.max())


def type_name(dtype: torch.dtype) -> str:
    """Such as float32."""
    return str(dtype).removeprefix("torch.")
