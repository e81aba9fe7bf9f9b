"""What the ranks of a process group have found, the same on each; one process is a group of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from spiritlevel.errors import UsageError

__all__ = ["ranks", "together"]


def ranks() -> int:
    ready = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if ready else 1


def together(work: Callable[[], Tensor], length: int) -> Tensor:
    """What `work` gives on each rank, (ranks, length) in float64, in one collective.

    All ranks must call it; `work` itself may not communicate. Where it raises on one, all raise:
    that rank its own error, the others a UsageError that names it.
    """
    if ranks() == 1:
        return work()[None]
    row = torch.zeros(length + 1, dtype=torch.float64)
    raised: Exception | None = None
    try:
        row[1:] = work()
        row[0] = 1
    except Exception as error:
        raised = error
    rows = _gathered(row)
    if raised is not None:
        raise raised
    failed = [str(rank) for rank, done in enumerate(rows[:, 0].tolist()) if not done]
    if failed:
        raise UsageError(
            f"got an error on rank {', '.join(failed)}, which says what it is; all ranks stop, and "
            "nothing is changed on any"
        )
    return rows[:, 1:]


def _gathered(row: Tensor) -> Tensor:
    """NCCL takes tensors of its own device only."""
    if dist.get_backend() == "nccl":
        row = row.to(torch.device("cuda", torch.cuda.current_device()))
    rows = [torch.empty_like(row) for _ in range(ranks())]
    dist.all_gather(rows, row)
    return torch.stack(rows).cpu()
