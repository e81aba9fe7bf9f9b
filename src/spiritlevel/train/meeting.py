"""A store of their own for the processes that torchrun has just started.

torchrun keeps one store for all of its restarts, in which the addresses of the processes before
still stand: those of a new start could try to reach them. Its count of restarts tells starts apart
on one machine only, as each agent counts by itself. So the leader names the start, and knows by
their own words that all the others have heard.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

__all__ = ["named", "store_of_this_start"]

_PAUSE = 0.02
"""Seconds between two looks."""


def store_of_this_start(patience: timedelta) -> Any:
    """Where torchrun's variables lead, behind a prefix that no other start has.

    Raises torch's DistError for processes that do not come within `patience`.
    """
    store, rank, size = next(rendezvous("env://", timeout=patience))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store  # of the leader itself, and as new
    start = named(store, rank, size, patience)
    return dist.PrefixStore(f"spiritlevel/{start}", store)  # type: ignore[attr-defined]


def named(store: Any, rank: int, size: int, patience: timedelta) -> str:
    """The name of this start, the same on all of its processes, whatever stands in the store.

    Raises DistError for processes that do not come within `patience`.
    """
    mine, own = uuid4().hex, f"spiritlevel/meeting/{rank}"
    if rank:
        store.set(own, mine)
        for _ in _looks(patience):
            told: str = store.get("spiritlevel/meeting/0").decode()
            start, *names = told.split()
            if names[rank - 1 : rank] == [mine]:
                store.set(f"{own}/heard", start)
                return start
    others = range(1, size)
    for _ in _looks(patience):
        names = [store.get(f"spiritlevel/meeting/{other}").decode() for other in others]
        store.set(own, " ".join([mine, *names]))
        heard = (f"spiritlevel/meeting/{other}/heard" for other in others)
        if all(store.check([key]) and store.get(key).decode() == mine for key in heard):
            break
    return mine


def _looks(patience: timedelta) -> Iterator[None]:
    end = time.monotonic() + patience.total_seconds()
    while time.monotonic() < end:
        yield
        time.sleep(_PAUSE)
    raise dist.DistStoreError(f"not all processes have come within {patience}")
