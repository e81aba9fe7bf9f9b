"""What the ranks of a process group have found, the same on each; one process is a group of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from spiritlevel.errors import UsageError

__all__ = ["ranks", "sent", "together"]


def ranks(group: Any = None) -> int:
    """Of the group, the default one where it is None; 1 for a process that is in none."""
    ready = dist.is_available() and dist.is_initialized()
    return max(dist.get_world_size(group), 1) if ready else 1


def together(work: Callable[[], Tensor], length: int, group: Any = None) -> Tensor:
    """What `work` gives on each rank, (ranks, length) in float64, in one collective.

    All ranks of the group must call it; `work` itself may not communicate. Where it raises on one,
    all raise: that rank its own error, the others a UsageError that names it.
    """
    if ranks(group) == 1:
        return work()[None]
    row = torch.zeros(length + 1, dtype=torch.float64)
    raised: Exception | None = None
    try:
        row[1:] = work()
        row[0] = 1
    except Exception as error:
        raised = error
    rows = _gathered(row, group)
    if raised is not None:
        raise raised
    failed = [str(rank) for rank, done in enumerate(rows[:, 0].tolist()) if not done]
    if failed:
        raise UsageError(
            f"got an error on rank {', '.join(failed)}, which says what it is; all ranks stop, and "
            "nothing is changed on any"
        )
    return rows[:, 1:]


def sent(tensor: Tensor, group: Any = None) -> Tensor:
    """The tensor where the group's collectives take it: those of NCCL only on their own device."""
    if dist.get_backend(group) == "nccl":
        return tensor.to(torch.device("cuda", torch.cuda.current_device()))
    return tensor


def _gathered(row: Tensor, group: Any) -> Tensor:
    row = sent(row, group)
    rows = [torch.empty_like(row) for _ in range(ranks(group))]
    dist.all_gather(rows, row, group=group)
    return torch.stack(rows).cpu()
