"""Where a measurement runs: its clock, its memory, its cache.

On a GPU the clock is the device's: it waits while the work of a run is handed to it, so that what
is told is the device's time, as in a program that hands over work faster than it is done. A run of
which the processor's time is a part is `waited` for instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from spiritlevel.bench.floor import last_level_cache
from spiritlevel.bench.memory import peak_bytes
from spiritlevel.bench.timing import seconds
from spiritlevel.errors import UsageError

__all__ = ["Device"]

_HANDED_OVER = 4_000_000
"""Cycles, some 2 ms, in which the processor hands over the work of a run."""
_event: Any = torch.cuda.Event


class Device:
    """ "cpu", "cuda" or "cuda:N". Raises UsageError where there is none."""

    def __init__(self, name: str) -> None:
        try:
            self.device = torch.device(name)
            known = self.device.type in ("cpu", "cuda")
        except RuntimeError:
            known = False
        if not known:
            raise UsageError(f"got device {name!r}; wanted cpu, cuda or cuda:N")
        self.is_gpu = self.device.type == "cuda"
        if self.is_gpu and (self.device.index or 0) >= torch.cuda.device_count():
            there = torch.cuda.device_count()
            raise UsageError(
                f"got device {name!r}, but torch sees {there} GPU(s) here; wanted cpu, or one of "
                "them"
            )
        self.name = name

    def current(self) -> AbstractContextManager[object]:
        """Within the block it is the device that kernels are launched on."""
        return torch.cuda.device(self.device) if self.is_gpu else nullcontext()

    @property
    def model(self) -> str | None:
        """A GPU's, such as NVIDIA H100 80GB HBM3."""
        return torch.cuda.get_device_name(self.device) if self.is_gpu else None

    def seconds(self, run: Callable[[], object]) -> float:
        """Of the device. What `run` returns is dropped after the clock has stopped."""
        if not self.is_gpu:
            return self.waited(run)
        start, end = (_event(enable_timing=True) for _ in range(2))
        with self.current():
            torch.cuda.synchronize()
            torch.cuda._sleep(_HANDED_OVER)  # type: ignore[no-untyped-call]
            start.record()
            result = run()
            end.record()
            end.synchronize()
        del result
        return 1e-3 * float(start.elapsed_time(end))

    def waited(self, run: Callable[[], object]) -> float:
        """Until the device has done it."""
        if not self.is_gpu:
            return seconds(run)

        def whole() -> object:
            result = run()
            torch.cuda.synchronize(self.device)
            return result

        torch.cuda.synchronize(self.device)
        return seconds(whole)

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """As `memory.peak_bytes`; of a GPU, what torch's allocator held there."""
        if not self.is_gpu:
            return peak_bytes(run)
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = run()
        torch.cuda.synchronize(self.device)
        del result
        return torch.cuda.max_memory_allocated(self.device) - before

    def memory(self) -> int | None:
        """All of a GPU's, in bytes."""
        return torch.cuda.mem_get_info(self.device)[1] if self.is_gpu else None

    def last_level_cache(self) -> int | None:
        """Its bytes; None where the system does not say."""
        if not self.is_gpu:
            return last_level_cache()
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)
