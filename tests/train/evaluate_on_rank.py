"""One of several processes that evaluate together: argv is its rank, how many, a file to meet, and
what they evaluate: a model, images and labels.

Prints, as JSON, what `evaluate` gave or raised in each situation.
"""

from __future__ import annotations

import copy
import json
import sys

import torch
from evaluated import outcome
from torch import distributed as dist

import spiritlevel as sl


def situations(rank: int, path: str) -> dict[str, object]:
    model, x, y = torch.load(path, weights_only=False)

    synced = sl.convert(copy.deepcopy(model), "sync")

    def stop():
        if rank == 1:
            raise OSError("stopped")

    return {
        "all": outcome(model, x, y, batch_size=50),
        "uneven": outcome(model, x[:101], y[:101], batch_size=7),
        "one image": outcome(model, x[:1], y[:1]),
        "stops": outcome(model, x, y, keep_going=stop),
        "batch statistics": outcome(synced, x[:9], y[:9], batch_size=4, training=True),
    }


if __name__ == "__main__":
    rank, world, meeting, path = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    print(json.dumps(situations(rank, path)))
    dist.destroy_process_group()
