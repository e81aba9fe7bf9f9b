"""The processes of a run, as torchrun starts them; one process is a group of one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spiritlevel.errors import SpiritlevelError, TrainingError, UsageError
from spiritlevel.train.meeting import store_of_this_start

__all__ = ["Echo", "Group", "LostError", "Place", "ToldError", "joined", "place"]

T = TypeVar("T")
_PATIENCE = timedelta(minutes=30)
"""For a process that prepares, writes or evaluates what the others wait for."""


@dataclass(frozen=True)
class Group:
    """This process's place among `size`, and how they agree."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _talk: Any = None
    """A group on gloo, for numbers of the host: nothing waits for a GPU."""

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def rows(self, values: Sequence[float]) -> Tensor:
        """What each process has found, (size, len(values)) in float64, the same on all."""
        row = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(rows, row, group=self._talk)
        return torch.stack(rows)

    def objects(self, value: Any) -> list[Any]:
        """Any values, one of each process, in order; of our own processes only, by pickle."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._talk)
        return found

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` gives here, if it does so on all. Where it raises, the leader tells it."""
        found, error = None, None
        try:
            found = work()
        except SpiritlevelError as raised:
            error = raised
        told = self.objects(None if error is None else str(error))
        first = next((rank for rank, text in enumerate(told) if text is not None), None)
        if first is None:
            return found  # type: ignore[return-value]
        if self.leads:
            raise error or UsageError(f"on rank {first}: {told[first]}")
        raise Echo(told[first]) from error

    def first(self, value: Any) -> Any:
        """The leader's value, on all."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._talk)
        return held[0]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over the processes, its buffers its own."""
        if self.size == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        wrapper: Any = nn.parallel.DistributedDataParallel
        # Its older name is deprecated from torch 2.13 on.
        names = inspect.signature(wrapper).parameters
        name = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in names)
        wrapped: nn.Module = wrapper(model, ids, **{name: False})
        return wrapped


class ToldError(TrainingError):
    """What the leader tells of all."""


class LostError(TrainingError):
    """Another process is gone."""


class Echo(UsageError):
    """What another process tells, raised in this one so that it ends as well."""


@dataclass(frozen=True)
class Place:
    """Where torchrun's variables put this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarted: bool = False
    """Whether all were started anew, after one was lost."""


def place() -> Place:
    """Alone where there are no such variables. Raises UsageError where they are half there."""
    told = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if not any(told.values()):
        return Place()
    wanted = (*told, "MASTER_ADDR", "MASTER_PORT")
    lacking = [name for name in wanted if not os.environ.get(name)]
    if lacking:
        raise UsageError(
            f"got {' and '.join(name for name in wanted if name not in lacking)} in the "
            f"environment, and no {', '.join(lacking)}; wanted all, as torchrun sets them, or none"
        )
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", "0"))
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if not 0 <= rank < size:
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"got RANK={os.environ['RANK']!r} of WORLD_SIZE={os.environ['WORLD_SIZE']!r} in the "
            "environment; wanted whole numbers, 0 to below the size, as torchrun sets them"
        ) from error
    return Place(rank, size, local, again > 0)


@contextmanager
def _telling_of_the_lost(rank: int) -> Iterator[None]:
    """What gloo and NCCL raise in a process that waits for one that is gone."""
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        known = ("gloo", "NCCL", "finished reduction in the prior iteration")
        if not isinstance(error, dist.DistError) and not any(word in told for word in known):
            raise
        if "finished reduction in the prior iteration" in told:
            raise UsageError(
                "got a model of which some parameters take no part in the loss, on several "
                "processes; wanted all to. Take them out, or set their requires_grad to False"
            ) from error
        raise LostError(
            f"got no answer from another process, told on rank {rank} ({told.splitlines()[0]}): it "
            "is lost, or has told why it stopped. What was saved is whole: torchrun "
            "--max-restarts starts all anew and goes on by itself, else go on by --resume"
        ) from error


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group that torchrun's variables tell of; left at the end, also after an error.

    `device` is "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N". Raises UsageError.
    """
    here = place()
    where = _device(device, here.local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if here.size == 1:
        yield Group(device=where)
        return
    backend = "nccl" if where.type == "cuda" else "gloo"
    with _telling_of_the_lost(here.rank):
        store = store_of_this_start(_PATIENCE)
        dist.init_process_group(
            backend, store=store, rank=here.rank, world_size=here.size, timeout=_PATIENCE
        )
        try:
            talk = dist.new_group(backend="gloo", timeout=_PATIENCE) if backend == "nccl" else None
            yield Group(here.rank, here.size, where, talk)
        finally:
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    found = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if found else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _refusal(name) from error
    if device.type == "cuda" and not found:
        raise UsageError(f"got device {name}, of which this torch sees none; wanted cpu, or auto")
    if device.type not in ("cpu", "cuda"):
        raise _refusal(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"got {device}, of {torch.cuda.device_count()} GPU(s) here; wanted one process a GPU. "
            "Start fewer processes on this machine"
        )
    return device


def _refusal(name: str) -> UsageError:
    return UsageError(f"got device {name!r}; wanted auto, cpu, cuda or cuda:N")
