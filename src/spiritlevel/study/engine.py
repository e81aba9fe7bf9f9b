"""Cells in processes of this machine: the same numbers whatever their count, and no orphans."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from spiritlevel.data import Images
from spiritlevel.errors import RecordsError, require
from spiritlevel.kernels import backend, tune_allocator
from spiritlevel.study.factory import Factory
from spiritlevel.study.networks import use_factory
from spiritlevel.study.records import Cell, Record, finite

__all__ = ["kernels", "measure", "run_cells"]

_WATCH_SECONDS = 0.5


def run_cells(
    cells: Sequence[Cell],
    images: Images,
    *,
    jobs: int,
    threads: int,
    cost: Callable[[Cell], float],
    scratch: Path,
    factory: Factory | None = None,
) -> Generator[Record]:
    """Records in the order in which cells end; the most costly cells start first.

    `jobs` processes through joblib (1: this process), each cell on `threads` torch threads. A fault
    in a cell becomes its record's `error`. Closing the iterator kills the workers. The images are
    handed to them through a file in `scratch`. `factory` builds the network of cells that are of
    the user's own. Raises RecordsError where there is no room for the images.
    """
    joblib = require("joblib", extra="study")
    # It replaces a worker whose memory has grown, and hands its cells to the new one.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    parallel = joblib.Parallel(
        n_jobs=jobs, return_as="generator_unordered", pre_dispatch=2 * jobs, batch_size=1
    )
    path = scratch / ".images.pt"
    work = joblib.delayed(_work)
    queue = sorted(cells, key=cost, reverse=True)
    finished = False
    try:
        _hand_over(images, path)
        yield from parallel(work(cell, path, threads, os.getpid(), factory) for cell in queue)
        finished = True
    finally:
        if jobs > 1:
            _stop_workers(kill=not finished)
        with suppress(OSError):  # Windows keeps a mapped file
            path.unlink()


def _hand_over(images: Images, path: Path) -> None:
    try:
        torch.save(vars(images), path)
    except (OSError, RuntimeError) as error:  # torch keeps the reason to itself
        size = sum(value.nbytes for value in vars(images).values() if isinstance(value, Tensor))
        raise RecordsError(
            f"got no room in {path.parent} for the images that the processes share, "
            f"{size / 1e6:.1f} MB; wanted a place to write them: "
            "free some and go on by --resume, or choose another --out"
        ) from error


def _stop_workers(*, kill: bool) -> None:
    from joblib.externals.loky import get_reusable_executor

    # With other arguments than joblib's it first ends joblib's workers, killing them if told to.
    get_reusable_executor(kill_workers=kill).shutdown(wait=not kill, kill_workers=kill)


def _work(cell: Cell, images: Path, threads: int, parent: int, factory: Factory | None) -> Record:
    _prepare_process(parent)
    if factory is not None:
        use_factory(factory)
    return measure(cell, partial(_images, images), threads=threads, run_on=kernels())


def measure(cell: Cell, images: Callable[[], Images], *, threads: int, run_on: str) -> Record:
    """Run a cell here, on `threads` torch threads and the kernels named `run_on`.

    What it raises becomes its record's `error`.
    """
    from spiritlevel.study.tasks import TASKS

    result, error = None, None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        with backend.use(run_on):
            result = finite(TASKS[cell.task](cell.settings, images()))
    except Exception as fault:  # one bad cell must not cost the others their results
        error = f"{type(fault).__name__}: {fault}"
    finally:
        torch.set_num_threads(before)
    seconds = round(time.perf_counter() - start, 3)
    return Record(cell.key, cell.task, dict(cell.settings), result, error, seconds, threads)


def kernels() -> str:
    """torch's own, unless others are asked for: no number then hangs on what is installed.

    Raises UsageError for what cannot be had.
    """
    asked = backend.asked()
    return "aten" if asked == "auto" else asked


@cache
def _prepare_process(parent: int) -> None:
    """Once a process: tune the allocator; a worker leaves Ctrl-C to its parent and dies with it."""
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


@lru_cache(maxsize=1)
def _images(path: Path) -> Images:
    """What the parent loaded, mapped: workers share its pages, and import no data library."""
    return Images(**torch.load(path, weights_only=True, mmap=True))
