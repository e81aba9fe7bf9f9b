"""What all measurements share: threads, allocator, the machine's description, progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend, tune_allocator

__all__ = ["Progress", "Setting", "first_line", "share_of"]

_LEAST_ROUNDS = 3
Progress = Callable[[float, str], None]
"""Told which share is done, 0 to 1, and of what; what it raises ends the measurement."""


class Setting:
    """Within the block torch has this many threads; the allocator keeps its setting for good.

    None leaves the threads as they are. Raises UsageError.
    """

    def __init__(self, *, rounds: int, threads: int | None) -> None:
        from spiritlevel.study.environment import usable_cores

        cores = usable_cores()
        if rounds < _LEAST_ROUNDS:
            raise UsageError(
                f"got {rounds} rounds; wanted at least {_LEAST_ROUNDS}: each is a sample"
            )
        if threads is not None and not 1 <= threads <= cores:
            raise UsageError(
                f"got {threads} threads; wanted 1 to {cores}, the cores this process may use: "
                "more would wait for each other"
            )
        self.rounds, self.threads = rounds, threads
        self.tuned = False

    def __enter__(self) -> Setting:
        self.tuned = tune_allocator()
        self.before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)

    def told(self) -> dict[str, Any]:
        """For the JSON. Within the block."""
        return {
            "rounds": self.rounds,
            "threads": torch.get_num_threads(),
            "kernels_asked": backend.asked(),
            "allocator_tuned": self.tuned,
        }

    def environment(self) -> dict[str, Any]:
        """The machine. After the measurement: it starts numba's threads, to name them."""
        from spiritlevel.study.environment import gather

        found = gather()
        del found["kernels"], found["extras"]
        return found


def first_line(error: Exception) -> str:
    """Of what it says, after its kind."""
    told = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {told.strip()}"


def share_of(
    progress: Progress | None, start: float, width: float, what: str
) -> Callable[[float], None]:
    """Tells `progress` of a part of the whole, by the share of the part that is done."""

    def tell(share: float) -> None:
        if progress is not None:
            progress(start + width * share, what)

    tell(0.0)
    return tell
