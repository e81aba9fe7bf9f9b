"""What a training step costs on several processes, with a batch norm of each and a synced one.

Each process has the same number of images and one thread of torch's; they talk by gloo over the
loopback device, whose counter tells what was really sent. What N processes send is told by a
formula, too, so that it can be carried to others:

    gradients    2 (N - 1) / N * 4 P bytes a process, in a ring
    forward      (N - 1) * 8 (2 C + 1) bytes a process and layer, an all-gather
    backward     2 (N - 1) / N * 8 * 2 C bytes a process and layer, in a ring

for P parameters in float32 and layers of C channels.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.bench.agree import Mismatch
from spiritlevel.bench.child import in_children
from spiritlevel.bench.setting import Progress, Setting, share_of
from spiritlevel.bench.timing import Subject, interleaved, ratio, summaries
from spiritlevel.errors import UsageError
from spiritlevel.kernels import tune_allocator
from spiritlevel.lent.norms import batch_norms
from spiritlevel.models import create_model
from spiritlevel.models.aside import layer_by_layer
from spiritlevel.models.registry import model_options
from spiritlevel.train.group import Group

__all__ = ["NORMS", "scale", "sent"]

NORMS = ("batch", "sync")
_COUNTED = 5
"""Steps over which bytes are counted."""
_CLOSE = 1e-4
"""Relative, of two losses in float32 whose sums are taken in another order."""
_LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def sent(processes: int, parameters: int, channels: Sequence[int]) -> dict[str, float]:
    """Bytes that a process sends in a step: for gradients, and in synced norms each way."""
    n, ring = processes, 2 * (processes - 1) / processes
    return {
        "gradients": ring * 4 * parameters,
        "forward": (n - 1) * 8.0 * (2 * sum(channels) + len(channels)),
        "backward": ring * 8 * 2 * sum(channels),
    }


def scale(
    *,
    model: str = "ghostnet_100",
    size: int = 64,
    batch: int = 32,
    processes: Sequence[int] = (1, 2),
    rounds: int = 10,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """For JSON: seconds and bytes of a step of `batch` images a process, at each count of them.

    Raises UsageError, and Mismatch where processes with a synced norm do not have one's loss.
    """
    if not processes or min(processes) < 1 or batch < 2:
        raise UsageError(
            f"got {list(processes)} processes, batch {batch}; wanted 1 or more, and 2 images"
        )
    with Setting(rounds=rounds, threads=1) as setting:
        cases = []
        for index, count in enumerate(processes):
            start = index / len(processes)
            share_of(progress, start, 1 / len(processes), f"{count} process(es)")
            cases.append(_case(count, model, size, batch, rounds))
        return {
            "command": "bench scale",
            "settings": setting.told() | {"model": model, "size": size, "batch": batch},
            "environment": setting.environment(),
            "cases": cases,
        }


def _case(count: int, model: str, size: int, batch: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        shared = {"count": count, "model": model, "size": size, "batch": batch, "rounds": rounds}
        given = [{**shared, "rank": rank, "meeting": f"{folder}/meeting"} for rank in range(count)]
        found = in_children(__name__, "steps", given, {"OMP_NUM_THREADS": "1"})
    one, several = found[0]["whole"], statistics.fmean(each["own"] for each in found)
    if abs(one - several) > _CLOSE * abs(one):
        raise Mismatch(
            f"got loss {several} of {count} processes with a synced norm, where one process has "
            f"{one} on the whole batch; nothing was timed. Report it, with `spiritlevel env`"
        )
    samples = found[0]["seconds"]
    told = {
        "processes": count,
        "parameters": found[0]["parameters"],
        "channels": found[0]["channels"],
        "seconds": summaries(samples),
        "ratio": ratio(samples["sync"], samples["batch"]).to_json(),
        "formula": sent(count, found[0]["parameters"], found[0]["channels"]),
    }
    counted = found[0]["bytes"]
    if None not in counted.values():
        told["bytes_a_process"] = {name: counted[name] / count for name in NORMS}
    return told


def steps(
    rank: int, count: int, meeting: str, model: str, size: int, batch: int, rounds: int
) -> dict[str, Any]:
    """The measurement on one of `count` processes. For a process of its own."""
    tune_allocator()
    torch.set_num_threads(1)
    if count > 1:
        there = f"file://{meeting}"
        dist.init_process_group("gloo", init_method=there, rank=rank, world_size=count)
    group = Group(rank, count)
    draws = torch.Generator().manual_seed(0)
    whole = torch.randn(count * batch, 3, size, size, generator=draws)
    labels = torch.randint(10, (count * batch,), generator=draws)
    own = slice(rank * batch, (rank + 1) * batch)
    trials = {norm: _Trial(model, norm, group, whole[own], labels[own]) for norm in NORMS}
    alone = _Trial(model, "batch", Group(), whole, labels)
    with layer_by_layer():  # as with a synced norm: of few images, norms make rounding grow
        expected = alone.loss() if group.leads else 0.0
    found = {
        "whole": expected,
        "own": trials["sync"].loss(),
        "bytes": {norm: trial.bytes() for norm, trial in trials.items()},
        "parameters": sum(p.numel() for p in alone.model.parameters()),
        "channels": [norm.num_features for norm in batch_norms(alone.model).values()],
    }
    # All draw one order of subjects, since they have to meet.
    samples = interleaved([Subject(norm, trial.met) for norm, trial in trials.items()], rounds)
    if count > 1:
        dist.destroy_process_group()
    return found | {"seconds": {norm: list(samples[norm]) for norm in NORMS}}


class _Trial:
    """A model with one norm, and the images of this process."""

    def __init__(self, name: str, norm: str, group: Group, x: Tensor, y: Tensor) -> None:
        torch.manual_seed(0)
        # A dropout would draw other images on each process.
        options: dict[str, Any] = {"drop_rate": 0.0} if "drop_rate" in model_options(name) else {}
        self.model = create_model(name, 10, norm=norm, **options).train()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net, self.group = group.wrap(self.model), group
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)
        self.x, self.y = x.contiguous(memory_format=torch.channels_last), y

    def loss(self) -> float:
        with torch.no_grad():
            return F.cross_entropy(self.net(self.x), self.y).item()

    def met(self) -> None:
        """A step that all processes begin together."""
        if self.group.size > 1:
            dist.barrier()
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.x), self.y).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def bytes(self) -> float | None:
        """What the loopback device sends in a step of all processes, if it tells."""
        if not _LOOPBACK.exists():
            return None
        self.step()
        before = self._told()
        for _ in range(_COUNTED):
            self.step()
        return (self._told() - before) / _COUNTED

    def _told(self) -> int:
        if self.group.size > 1:
            dist.barrier()
        return int(_LOOPBACK.read_text())
