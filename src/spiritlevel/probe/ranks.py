"""The running statistics of the same model on all ranks, over the store of the process group.

No collective is used: where one rank alone measures, it waits for a while and goes on with what it
has. An offer stands only while its rank waits, so a number is never one of an earlier call, and
each rank waits until the others have read its own.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from spiritlevel.lent.norms import batch_norms

__all__ = ["Ranks", "across_ranks", "exchange"]

PATIENCE = 10.0
"""Seconds to wait for the others."""
CHANNELS = 64
"""Of each layer at most, spread evenly; ranks that differ do so in nearly all."""
_PAUSE = 0.01
_KEY = "spiritlevel/running statistics"

Statistics = dict[str, tuple[list[float], list[float]]]
"""Batch norm -> running mean and running variance of the channels that are compared."""


@dataclass(frozen=True)
class Ranks:
    world: int
    rank: int
    statistics: dict[int, Statistics]
    """Of this rank and of those that answered."""
    waited: float
    """Seconds at most."""

    @property
    def missing(self) -> list[int]:
        return [rank for rank in range(self.world) if rank not in self.statistics]


def across_ranks(model: nn.Module, patience: float = PATIENCE) -> Ranks | None:
    """None without a process group of two or more ranks, or without running statistics."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    statistics = _statistics(model)
    store: Any = dist.distributed_c10d._get_default_store()
    if store is None or not statistics:
        return None
    rank, world = dist.get_rank(), dist.get_world_size()
    return Ranks(world, rank, exchange(store, rank, world, statistics, patience), patience)


def exchange(
    store: Any, rank: int, world: int, own: Statistics, patience: float
) -> dict[int, Statistics]:
    """`own` of each rank that makes this call at the same time; its keys are overwritten."""
    token = uuid.uuid4().hex
    deadline = time.monotonic() + patience
    found = {rank: own}
    others = set(range(world)) - {rank}
    store.set(f"{_KEY}/{rank}", json.dumps([token, own]))
    try:

        def read(other: int) -> bool:
            offered, receipt = _get(store, f"{_KEY}/{other}"), f"{_KEY}/{rank} has read {other}"
            if not offered:
                return False
            their_token, statistics = json.loads(offered)
            if _get(store, receipt) == their_token:
                return False  # of the call before, which the other is about to leave
            found[other] = statistics
            store.set(receipt, their_token)
            return True

        def was_read(other: int) -> bool:
            return _get(store, f"{_KEY}/{other} has read {rank}") == token

        _wait(read, others, deadline)
        # Those that were not there may still come, but nothing is waited for any longer.
        _wait(was_read, others & found.keys(), deadline)
    finally:
        store.set(f"{_KEY}/{rank}", "")
    return found


def _wait(done: Callable[[int], bool], others: set[int], deadline: float) -> None:
    """Until it is done for all others, asked at least once for each."""
    left = set(others)
    while left := {other for other in left if not done(other)}:
        if time.monotonic() >= deadline:
            return
        time.sleep(_PAUSE)


def _get(store: Any, key: str) -> str:
    """ "" where it is not set; the store's own get would wait for it."""
    return store.get(key).decode() if store.check([key]) else ""


def _statistics(model: nn.Module) -> Statistics:
    found = {}
    for path, norm in batch_norms(model).items():
        mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor) and not mean.is_meta:
            found[path] = _some(mean), _some(var)
    return found


def _some(values: Tensor) -> list[float]:
    flat = values.detach().flatten().double()
    step = max(1, -(-len(flat) // CHANNELS))
    return [float(value) for value in flat[::step].cpu()]
