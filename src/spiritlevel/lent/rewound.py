"""The same batches, read again: what a loader draws from starts as it stood."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from spiritlevel.lent.state import random_states, set_random_states

__all__ = ["rewound"]

_PARTS = ("dataset", "sampler", "batch_sampler")


@contextmanager
def rewound(batches: Any) -> Iterator[Callable[[], None]]:
    """Gives what puts the random states back, as is done after it: those of Python, NumPy and
    torch's CPU, and of the generators that the loader, its data and its samplers hold."""
    states, cpu = random_states(), torch.get_rng_state()
    own = [_restoring(value) for value in _held(batches, set())]

    def back() -> None:
        set_random_states(states)
        torch.set_rng_state(cpu)
        for restore in own:
            restore()

    try:
        yield back
    finally:
        back()


def _held(holder: Any, seen: set[int]) -> Iterator[Any]:
    if id(holder) in seen:
        return
    seen.add(id(holder))
    held = getattr(holder, "__dict__", {})
    yield from held.values()
    for name in _PARTS:
        yield from _held(held.get(name), seen)


def _restoring(value: Any) -> Callable[[], object]:
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, np.random.Generator):
        bits, drawn = value.bit_generator, value.bit_generator.state
        return lambda: setattr(bits, "state", drawn)
    if isinstance(value, np.random.RandomState):
        old = value.get_state()
        return lambda: value.set_state(old)
    if isinstance(value, random.Random):
        before = value.getstate()
        return lambda: value.setstate(before)
    return lambda: None
