"""The most that torch's allocator held at once while something ran.

The profiler is told of every block that the allocator hands out and takes back, whoever asked:
torch's operations, a compiled graph or our kernels, whose outputs and scratch are torch's tensors.
A block counts from when it is handed out, whether or not it is written to. What oneDNN and MKL keep
for themselves it does not see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes", "silent"]


def peak_bytes(run: Callable[[], object]) -> int:
    """The highest level above where it began, on the CPU; what `run` returns counts to its end.

    Have it run before: what is allocated once only, such as an optimizer's state, is not of a step.
    """
    found = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with silent():
        found.start()
    try:
        result = run()
    finally:
        with silent():
            found.stop()
    del result
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    events = found.profiler.kineto_results.events()
    changes = [
        (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]
        for event in events
        if event.name() == "[memory]"
    ]
    level = peak = 0
    for _, change in sorted(changes, key=lambda at_and_change: at_and_change[0]):
        level += change
        peak = max(peak, level)
    return peak


@contextmanager
def silent() -> Iterator[None]:
    """The profiler tells stderr, past Python, when it starts and stops."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
