"""Cells in parallel processes: same numbers whatever their count, and no orphans when one is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from spiritlevel.errors import SpiritlevelError, require
from spiritlevel.study.records import Cell, Record

__all__ = ["run_cells"]

_WATCH_SECONDS = 0.5


def run_cells(
    cells: Sequence[Cell],
    *,
    data: str,
    fingerprint: str,
    jobs: int,
    threads: int,
    order: Callable[[Cell], float],
) -> Iterator[Record]:
    """Records in the order in which cells end, those with the largest `order` started first.

    `jobs` processes through joblib (1: this process), each cell on `threads` torch threads. A fault
    in a cell becomes its record's `error`. Closing the iterator kills the workers.
    """
    joblib = require("joblib", extra="study")
    queue = sorted(cells, key=order, reverse=True)
    parallel = joblib.Parallel(
        n_jobs=jobs, return_as="generator_unordered", pre_dispatch=f"{jobs}", batch_size=1
    )
    work = joblib.delayed(_work)
    finished = False
    results = parallel(work(cell, data, fingerprint, threads, os.getpid()) for cell in queue)
    try:
        yield from results
        finished = True
    finally:
        if jobs > 1:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=finished, kill_workers=not finished)


def _work(cell: Cell, data: str, fingerprint: str, threads: int, parent: int) -> Record:
    _prepare_process(parent)
    import torch

    from spiritlevel.study.tasks import TASKS

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        result = TASKS[cell.task](cell.settings, _images(data, fingerprint))
        error = None
    except Exception as fault:  # one bad cell must not cost the others their results
        result, error = None, f"{type(fault).__name__}: {fault}"
    finally:
        torch.set_num_threads(before)
    seconds = round(time.perf_counter() - start, 3)
    return Record(cell.key, cell.task, dict(cell.settings), result, error, seconds, threads)


@cache
def _prepare_process(parent: int) -> None:
    """Once a process: tune the allocator; a worker also leaves Ctrl-C to its parent and dies with it."""
    from spiritlevel.kernels import tune_allocator

    tune_allocator()
    if os.getpid() != parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    # A worker whose parent was killed would compute on for nobody. Torch releases the interpreter's
    # lock while it computes, so this thread gets its turn.
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


@cache
def _images(data: str, fingerprint: str):  # type: ignore[no-untyped-def]
    from spiritlevel.data import load

    images = load(data)
    if images.fingerprint != fingerprint:
        raise SpiritlevelError(f"the images of {data} changed while the study ran; start it again")
    return images
