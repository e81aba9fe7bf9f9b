"""One of the processes of test_ranks.py: argv is its rank, how many there are, and a file to meet.

Prints, as JSON, [rule, severity, module, message] of each finding of SL209 in each step.
"""

from __future__ import annotations

import json
import sys

import cases_buffers
import torch
from case_book import CASES, batches, train
from torch import distributed as dist
from torch import nn

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.check import RULES
from spiritlevel.probe.ranks import across_ranks


def told(case: Case) -> list[list[str]]:
    return [[f.rule, f.severity, f.module, f.message] for f in RULES["SL209"](case)]


def steps(rank: int) -> dict[str, list[list[str]]]:
    torch.set_num_threads(1)
    (entry,) = (entry for entry in CASES if entry.rule == "SL209")
    found = {"bug": told(Case(**entry.bug())), "twin": told(Case(**entry.clean()))}

    model = cases_buffers.small_net()  # as DistributedDataParallel does it by default
    x, y = cases_buffers.blobs()
    parallel = nn.parallel.DistributedDataParallel(model)
    train(parallel, batches(x[rank::2], y[rank::2], size=8), epochs=2)
    found["default"] = told(Case(model))
    found["at once again"] = told(Case(model))

    dist.barrier()
    if rank == 0:
        case = Case(model)
        case.__dict__["ranks"] = across_ranks(model, patience=0.2)
        found["alone"] = told(case)
    dist.barrier()
    found["together after that"] = told(Case(model))
    return found


if __name__ == "__main__":
    rank, world, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    print(json.dumps(steps(rank)))
    dist.destroy_process_group()
