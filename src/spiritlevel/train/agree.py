"""Running statistics that are the same on all ranks, before a model is evaluated or saved."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.lent.as_used import borrowed, frozen_norms
from spiritlevel.lent.norms import batch_norms
from spiritlevel.lent.together import ranks, sent
from spiritlevel.surgery.statistics import tracks

__all__ = ["share_statistics_"]


def share_statistics_(model: nn.Module, group: Any = None) -> nn.Module:
    """The model, whose running means and variances are, in place, their averages over the ranks.

    Each rank has followed its own batches. An average of running averages is the running average of
    the averages, so it does not matter when, nor how often, they are shared. It is what one process
    would hold that had followed the mean of the ranks' means and of their variances, weighted
    alike; what the means differ by is in no rank's variance, nor here: `recalibrate` and norm
    "sync" count that, too. Counters become the largest of all ranks. Frozen layers keep what they
    have.

    All ranks of the group call it, with the same model; it is one collective, by gloo or by NCCL. A
    process alone does nothing. What is not finite on one rank is so on all. Raises UsageError for
    lazy layers.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"got {type(model).__name__} to share; wanted a torch.nn.Module")
    if ranks(group) == 1:
        return model
    with borrowed(model):
        frozen = frozen_norms(model)
    norms: list[Any] = [n for p, n in batch_norms(model).items() if tracks(n) and p not in frozen]
    running = [t for norm in norms for t in (norm.running_mean, norm.running_var)]
    held = (getattr(norm, "num_batches_tracked", None) for norm in norms)
    counters = [t for t in held if isinstance(t, Tensor)]
    if running:
        _share(running, counters, group)
    return model


@torch.no_grad()
def _share(running: list[Tensor], counters: list[Tensor], group: Any) -> None:
    count, rank = ranks(group), dist.get_rank(group)
    own = torch.cat([t.double().flatten().cpu() for t in running])
    # A sum, for which each rank has a column of its own, tells the largest, too.
    seen = torch.zeros(len(counters), count, dtype=torch.float64)
    seen[:, rank] = torch.tensor([float(t) for t in counters], dtype=torch.float64)
    total = sent(torch.cat([own, seen.flatten()]), group)
    dist.all_reduce(total, group=group)
    total = total.cpu()
    means = torch.split(total[: len(own)] / count, [t.numel() for t in running])
    for tensor, mean in zip(running, means, strict=True):
        tensor.copy_(mean.view_as(tensor))
    for counter, largest in zip(counters, total[len(own) :].view(-1, count).amax(1), strict=True):
        counter.copy_(largest)
