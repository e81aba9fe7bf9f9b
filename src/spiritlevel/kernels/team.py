"""Run a compiled function on all of torch's threads at once.

A kernel here is a C function `void kernel(void *work)` which takes one chunk after another from a
counter in `work` until none is left, so it may be called by any number of threads. Which of them
does a chunk changes no number.

Where torch is built on GNU's OpenMP, as its wheels for Linux are, the threads are torch's own: a
second pool would have to share the cores with torch's, which spin for a while after each operation.
Elsewhere they are a pool of Python threads, which let go of the GIL.
"""

from __future__ import annotations

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

__all__ = ["run", "threads"]

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def threads() -> int:
    """How many a kernel runs on: torch's, at most NUMBA_NUM_THREADS where that is set.

    One in a child process that was forked: the threads of the parent are not there.
    """
    return 1 if _forked else min(torch.get_num_threads(), _limit())


def run(kernel: int, work: int, team: int) -> None:
    """Call a function with an argument, both addresses, on `team` threads; return when all have."""
    if team == 1:
        _call(kernel)(work)
    elif (parallel := _gnu_openmp()) is not None:
        parallel(kernel, work, team, 0)
    else:
        others = [_pool(team).submit(_call(kernel), work) for _ in range(team - 1)]
        _call(kernel)(work)
        for other in others:
            other.result()


@cache
def _call(kernel: int) -> ctypes._CFunctionType:
    return _KERNEL(kernel)


@cache
def _limit() -> int:
    given = os.environ.get("NUMBA_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else sys.maxsize


@cache
def _gnu_openmp() -> ctypes._NamedFuncPointer | None:
    """GOMP_parallel(function, data, threads, flags) of the very library that torch has loaded."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/self/maps") as maps:
            loaded = {line.split(maxsplit=5)[-1].strip() for line in maps if "/libgomp" in line}
        (library,) = loaded
        parallel = ctypes.CDLL(library).GOMP_parallel
    except (OSError, ValueError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@cache
def _pool(team: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(team - 1, thread_name_prefix="spiritlevel")


def _after_fork() -> None:
    global _forked
    _forked = True


_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
