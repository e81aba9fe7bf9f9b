"""What a probe costs, from its own clock."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

__all__ = ["Overhead"]


class Overhead:
    """Seconds spent in the probe's own hooks, beside those that passed.

    On a GPU these are the seconds of the CPU. Not in it is what torch takes to call a hook, about
    two microseconds.
    """

    def __init__(self) -> None:
        self.steps = self.samples = 0
        self._total = 0
        self._counting = self._reading = 0
        self._since: int | None = None
        self._depth = 0
        self._start = 0
        self._is_reading = False

    def begin(self) -> None:
        self._since = perf_counter_ns()

    def end(self) -> None:
        if self._since is not None:
            self._total, self._since = self._elapsed(), None

    def taking(self, reading: bool) -> Overhead:
        """A block that is the probe's own; `reading`: in a sampled step."""
        self._is_reading = reading
        return self

    def __enter__(self) -> None:
        if self._depth == 0:
            self._start = perf_counter_ns()
        self._depth += 1

    def __exit__(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.add(perf_counter_ns() - self._start, reading=self._is_reading)

    def add(self, nanoseconds: int, *, reading: bool) -> None:
        if self._depth:
            return  # the block around it takes the time
        if reading:
            self._reading += nanoseconds
        else:
            self._counting += nanoseconds

    def step(self, *, sampled: bool) -> None:
        self.steps += 1
        self.samples += sampled

    def _elapsed(self) -> int:
        return self._total if self._since is None else perf_counter_ns() - self._since

    @property
    def seconds(self) -> float:
        """In the probe."""
        return (self._counting + self._reading) / 1e9

    @property
    def elapsed(self) -> float:
        """Seconds since the block began, or that it took."""
        return self._elapsed() / 1e9

    @property
    def share(self) -> float:
        """Of the time that training would have taken without; 0 before anything ran."""
        rest = self.elapsed - self.seconds
        return self.seconds / rest if rest > 0 else 0.0

    @property
    def sampled_ms(self) -> float:
        """Of one sampled step, on average."""
        return self._reading / 1e6 / max(self.samples, 1)

    @property
    def step_ms(self) -> float:
        """Of one step whose passes are only counted, on average."""
        return self._counting / 1e6 / max(self.steps - self.samples, 1)

    def __repr__(self) -> str:
        return (
            f"overhead {self.share:.2%}: {self.seconds:.2f} s beside {self.elapsed:.2f} s, "
            f"{self.sampled_ms:.1f} ms a sampled step, {self.step_ms:.2f} ms another"
        )
