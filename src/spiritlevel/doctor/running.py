"""What a norm holds beside its parameters: running statistics, and how many batches they saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.nn import SyncBatchNorm

__all__ = [
    "RECALIBRATE",
    "SYNCED",
    "at_init",
    "counted",
    "held",
    "listed",
    "local",
    "momentum",
    "running",
    "spared",
    "varies",
]

SYNCED = (nn.SyncBatchNorm, SyncBatchNorm)
RECALIBRATE = "recalibrate it on training data: torch.optim.swa_utils.update_bn(loader, model)"


def held(norm: nn.Module, name: str) -> Tensor | None:
    """A tensor that has values, on the CPU; None where there is none."""
    value = getattr(norm, name, None)
    if not isinstance(value, Tensor) or is_lazy(value) or value.is_meta or not value.numel():
        return None
    return local(value.detach()).cpu()


def local(value: Tensor) -> Tensor:
    """This rank's share of a sharded tensor, whose arithmetic would wait for the other ranks."""
    return value.to_local() if hasattr(value, "to_local") else value


def running(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The running mean and variance, float64; None without both."""
    mean, var = held(norm, "running_mean"), held(norm, "running_var")
    return None if mean is None or var is None else (mean.double(), var.double())


def counted(norm: nn.Module) -> float:
    """How many batches are in the running statistics, as the layer says; 0 where it does not."""
    count = held(norm, "num_batches_tracked")
    return 0.0 if count is None else float(count)


def at_init(norm: nn.Module) -> bool:
    """Whether the running statistics are a mean of 0 and a variance of 1, and none was counted."""
    statistics = running(norm)
    if statistics is None or counted(norm):
        return False
    mean, var = statistics
    return bool((mean == 0).all() and (var == 1).all())


def momentum(norm: nn.Module) -> float | None:
    """The new batch's share, as torch has it; None is the mean over all batches."""
    value: Any = getattr(norm, "momentum", None)
    return float(value) if isinstance(value, int | float) else None


def spared(norm: nn.Module) -> bool:
    """Whether it has parameters of its own, and none of them learns."""
    own = list(norm.parameters(recurse=False))
    return bool(own) and not any(p.requires_grad for p in own)


def varies(values: Tensor | None, start: float) -> bool:
    """Whether the channels have come to differ; a single one, whether it has left its start."""
    if values is None:
        return False
    if values.numel() == 1:
        return bool((values != start).all())
    return not torch.equal(values, values.flatten()[:1].expand_as(values))


def listed(norms: Mapping[str, nn.Module] | list[str]) -> tuple[str, str]:
    """The first of them, and the text that says how many there are more."""
    first, *rest = norms
    return first, f" ({len(rest)} more layer{'s' * (len(rest) > 1)} alike)" if rest else ""
