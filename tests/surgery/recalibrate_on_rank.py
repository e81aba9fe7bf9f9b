"""One of the processes of test_recalibrate_ranks.py: its rank, how many there are, a file to meet.

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
    rank, world, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    print(json.dumps(situations(rank, world)))
    dist.destroy_process_group()
