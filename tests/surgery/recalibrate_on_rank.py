"""One of several processes. Takes its rank, how many there are, a file to meet, "all" or "few".

Prints, as JSON, the running statistics or the error of each situation.
"""

from __future__ import annotations

import json
import sys

import torch
from recalibrate_cases import images, net, pairs
from torch import distributed as dist
from torch import nn

import spiritlevel as sl
from spiritlevel.errors import UsageError


def outcome(model, batches, **options):
    """Statistics, bit for bit, and the summary; or the error, and whether nothing changed."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    try:
        sl.recalibrate(model, batches, **options)
    except UsageError as error:
        after = model.state_dict()
        return str(error), all(torch.equal(t, after[name]) for name, t in before.items())
    whole = model.spiritlevel_log[0]
    numbers = [t.tolist() for name, t in model.state_dict().items() if "running" in name]
    counts = [int(t) for name, t in model.state_dict().items() if "tracked" in name]
    summary = whole.batches, whole.before, whole.after, whole.samples
    return numbers, counts, summary, [str(entry) for entry in model.spiritlevel_log]


def stops(rank):
    """Raises on rank 1 alone, after its first batch."""
    yield pairs()[0]
    if rank == 1:
        raise OSError("gone")
    yield pairs()[1]


def own(rank, world):
    """Rank 0 has more batches than rank 1; together they have them all."""
    if world == 1:
        return pairs()
    return pairs()[:2] if rank == 0 else pairs()[2:]


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x * 2)


class Drifts(list):
    """Others in each pass, on rank 1."""

    def __iter__(self):
        held = list(super().__iter__())
        self[:] = [(x + 1, y) for x, y in held]
        return iter(held)


def lazy(rank):
    return nn.Sequential(nn.LazyBatchNorm2d()) if rank == 1 else nn.Sequential(nn.BatchNorm2d(2))


def refused(model, batches, **options):
    try:
        sl.recalibrate(model, batches, **options)
    except UsageError as error:
        return str(error)
    return "done"


def few(rank: int):
    """Two ranks; nothing that a collective of torch's would wait for."""
    found = {}
    for sequential in (False, True):
        mine = own(rank, 2)
        found[f"uneven {sequential}"] = outcome(net(), mine, sequential=sequential)
    found["a loader raises"] = outcome(net(), stops(rank))
    found["lazy"] = refused(lazy(rank), pairs())
    found["no module"] = refused(7 if rank == 1 else net(), pairs())
    found["type of an option"] = refused(net(), pairs(), accuracy="no" if rank == 1 else True)
    found["no norms"] = refused(nn.Linear(2, 2) if rank == 1 else net(), pairs())
    found["own forward"] = outcome(nn.Sequential(nn.BatchNorm2d(2), Own(2)).double(), pairs())
    drifting = Drifts(pairs()) if rank == 1 else pairs()
    found["drifting"] = outcome(net(), drifting)
    drifting = Drifts(pairs()) if rank == 1 else pairs()
    found["drifting, in order"] = outcome(net(), drifting, sequential=True)
    for which in (0, 1):
        found[f"twice on {which}"] = outcome(Twice(rank == which), pairs(), sequential=True)
    return found


class Twice(nn.Module):
    """Its norm is called again behind its own output."""

    def __init__(self, again):
        super().__init__()
        self.again, self.norm = again, nn.BatchNorm2d(2).double()

    def forward(self, x):
        y = self.norm(x)
        return self.norm(2 * y + 1) if self.again else y


def situations(rank: int, world: int):
    found = {}
    for sequential in (False, True):
        of = {"sequential": sequential}
        mine = own(rank, world)
        found[f"uneven {sequential}"] = outcome(net(), mine, **of)
        empty = pairs() if rank == 0 else []
        found[f"one is empty {sequential}"] = outcome(net(), empty, **of)
        found[f"all are empty {sequential}"] = outcome(net(), [], **of)
        found[f"a loader raises {sequential}"] = outcome(net(), stops(rank), **of)
        found[f"a generator {sequential}"] = outcome(net(), iter(mine) if rank else mine, **of)
        single = [(images(1)[0, 0, 0][None, :2] + rank, torch.tensor([0]))]
        found[f"one value each {sequential}"] = outcome(nn.BatchNorm1d(2).double(), single, **of)
        parallel = nn.parallel.DistributedDataParallel(net().train())
        found[f"parallel {sequential}"] = outcome(parallel, mine, **of)
        # A forward pass in which DistributedDataParallel asks the other rank would wait for ever.
        parallel = nn.parallel.DistributedDataParallel(net().train())
        found[f"parallel, one is empty {sequential}"] = outcome(parallel, empty, **of)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(net())
        found[f"synced {sequential}"] = outcome(synced, mine, **of)
    found["other options"] = outcome(net(), own(rank, world), sequential=rank == 1)
    return found


if __name__ == "__main__":
    rank, world, meeting, which = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    print(json.dumps(few(rank) if which == "few" else situations(rank, world)))
    dist.destroy_process_group()
