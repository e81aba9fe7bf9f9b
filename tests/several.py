"""Several real processes in one gloo group, each of which runs the same function.

`run` starts them and hands back what each returned. A process that hangs is killed, and the test
fails with what it wrote.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

HERE = Path(__file__)


def run(world: int, function: str, folder: Path, *, seconds: float = 180) -> list:
    """What `module.function(rank, world)` returns on each rank, as `torch.save` can hold it.

    `module` is found beside the test that asks, on `sys.path`; `folder` is empty.
    """
    children = [
        subprocess.Popen(
            [sys.executable, HERE, function, str(rank), str(world), str(folder), str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in range(world)
    ]
    told = []
    try:
        told += [child.communicate(timeout=seconds)[0] for child in children]
    except subprocess.TimeoutExpired:
        for child in children:
            child.kill()
        told = [child.communicate()[0] for child in children]
        raise AssertionError(f"ranks hung for {seconds} s: {told}") from None
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * world, "\n".join(told)
    import torch

    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _child(function: str, rank: int, world: int, folder: Path, seconds: float) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    module, name = function.rsplit(".", 1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    found = getattr(importlib.import_module(module), name)(rank, world)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    function, rank, world, folder, seconds = sys.argv[1:]
    _child(function, int(rank), int(world), Path(folder), float(seconds))
