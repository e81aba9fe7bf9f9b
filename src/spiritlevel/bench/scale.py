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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spiritlevel.bench.agree import Mismatch
from spiritlevel.bench.child import in_children
from spiritlevel.bench.setting import Progress, Setting, share_of
from spiritlevel.bench.timing import ratio, summary
from spiritlevel.errors import UsageError

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
        "seconds": {name: asdict(summary(samples[name])) for name in NORMS},
        "ratio": ratio(samples["sync"], samples["batch"]).to_json(),
        "formula": sent(count, found[0]["parameters"], found[0]["channels"]),
    }
    if found[0]["bytes"] is not None:
        told["bytes_a_process"] = {name: found[0]["bytes"][name] / count for name in NORMS}
    return told


def steps(
    rank: int, count: int, meeting: str, model: str, size: int, batch: int, rounds: int
) -> dict[str, Any]:
    """The measurement on one of `count` processes. For a process of its own."""
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    from spiritlevel.bench.timing import Subject, interleaved
    from spiritlevel.kernels import tune_allocator
    from spiritlevel.lent.norms import batch_norms
    from spiritlevel.models import create_model
    from spiritlevel.models.registry import model_options

    tune_allocator()
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count
        )
    draws = torch.Generator().manual_seed(0)
    whole = torch.randn(count * batch, 3, size, size, generator=draws)
    labels = torch.randint(10, (count * batch,), generator=draws)
    own = slice(rank * batch, (rank + 1) * batch)

    options = {"drop_rate": 0.0} if "drop_rate" in model_options(model) else {}

    def made(norm: str) -> nn.Module:
        torch.manual_seed(0)
        found = create_model(model, 10, norm=norm, **options)
        found.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return found if count == 1 else DistributedDataParallel(found)

    def step(net: nn.Module, optimizer: Any) -> Tensor:
        optimizer.zero_grad()
        x = whole[own].contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(net(x), labels[own])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    nets = {name: made(name) for name in NORMS}
    torch.manual_seed(0)
    plain = create_model(model, 10, **options)
    layers = [m.num_features for m in batch_norms(plain).values()]
    with torch.no_grad():
        of_whole = F.cross_entropy(plain.train()(whole), labels).item() if rank == 0 else 0.0
        of_own = F.cross_entropy(nets["sync"].train()(whole[own]), labels[own]).item()
    movers = {
        n: torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9) for n, net in nets.items()
    }
    counted: dict[str, float] | None = {} if _LOOPBACK.exists() else None
    for name, net in nets.items():
        step(net, movers[name])
        before = _told_by(dist, count)
        for _ in range(_COUNTED):
            step(net, movers[name])
        if counted is not None:
            counted[name] = (_told_by(dist, count) - before) / _COUNTED

    def timed(name: str) -> object:
        if count > 1:
            dist.barrier()
        return step(nets[name], movers[name])

    # All draw one order of subjects, since they have to meet.
    subjects = [Subject(name, lambda name=name: timed(name)) for name in NORMS]  # type: ignore[misc]
    samples = interleaved(subjects, rounds)
    if count > 1:
        dist.destroy_process_group()
    return {
        "whole": of_whole,
        "own": of_own,
        "seconds": {name: list(samples[name]) for name in NORMS},
        "bytes": counted,
        "parameters": sum(p.numel() for p in nets["batch"].parameters()),
        "channels": layers,
    }


def _told_by(dist: Any, count: int) -> int:
    """The loopback's counter, when no process has anything left to send."""
    if count > 1:
        dist.barrier()
    return int(_LOOPBACK.read_text()) if _LOOPBACK.exists() else 0
