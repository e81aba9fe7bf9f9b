"""How a pass of `gpu` is launched: by which cut, tuned once; past Triton's slow way to a kernel.

A pass may be cut in several ways, into more programs or fewer, whose tiles are read ahead or not.
Of a tensor that is large the ways are timed on the first call, and what was fastest is kept on disk
for each device and version of Triton, in the folder SPIRITLEVEL_CACHE or spiritlevel in the user's
cache folder. How sums are cut decides how they round: under torch.use_deterministic_algorithms the
first way is taken, whatever is known to be faster.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from spiritlevel.errors import UsageError
from spiritlevel.files import cache_folder, write_whole
from spiritlevel.kernels.backend import MOST_SHAPES

__all__ = ["FUSED", "INTERPRETED", "Plan", "Way", "launch", "moments", "multiprocessors", "scratch"]

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton runs the kernels in Python, on a processor, to be tested."""

FUSED = {"enable_fp_fusion": True}
"""Products and sums are rounded once, whatever this version of Triton does unless it is told."""
_event: Any = torch.cuda.Event
_LARGE = 1 << 23
"""Numbers of a tensor from which on: ways are timed."""
_ROUNDS = 5
_HANDED_OVER = 1_000_000
"""Cycles, some 0.5 ms, in which the processor hands over what is timed."""


class Way(NamedTuple):
    """A cut of a tensor into programs: the grid, its numbers, and what a kernel is compiled for."""

    grid: tuple[int, int, int]
    cut: tuple[int, ...]
    how: dict[str, Any]


class Plan:
    """All ways to cut tensors of a shape, and which are taken; `parts` are those of the finest.

    A kernel with sums, which has BLOCK_P, takes one of `summed`, another one of `written`.
    """

    def __init__(
        self,
        name: str,
        numbers: int,
        whole: int,
        number: torch.dtype,
        summed: Sequence[Way],
        written: Sequence[Way] = (),
    ) -> None:
        self.name, self.large = name, numbers >= _LARGE
        self.whole, self.number = whole, number
        self.summed, self.written = summed, written
        self.parts = max(way.grid[0] for way in summed)
        self.columns = summed[0].grid[1] * summed[0].grid[2]
        self.folds = summed[0].how.get("FOLD", 1) > 1
        self.taken: dict[Any, Way] = {}


@cache
def multiprocessors() -> int:
    if INTERPRETED:
        return 2
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)


def launch(
    kernel: Any, x: Tensor, plan: Plan, given: tuple[Any, ...], statics: tuple[Any, ...] = ()
) -> None:
    """Run it where x is, on `given`, what the plan says, and what it is compiled for."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):  # Triton launches on the current device
            launch(kernel, x, plan, given, statics)
        return
    name = kernel.__name__
    way = plan.taken.get((name, x.device.index))
    if way is None or (plan.large and torch.are_deterministic_algorithms_enabled()):
        way = _best(kernel, x, plan, given, statics)
    if INTERPRETED:
        kernel[way.grid](*given, *way.cut, **_constants(kernel, way, statics))
        return
    # All of the arguments that a kernel is compiled for, and the arguments as it takes them.
    kinds: list[Any] = [name, id(way), plan, x.device.index, statics]
    at: list[Any] = []
    places: list[int] = []
    low = 0
    for each in given:
        if each is None or isinstance(each, int):  # cheaper than to ask whether it is a tensor
            at.append(each)
            kinds.append(each)
        elif isinstance(each, float):
            at.append(each)
            kinds.append(None)
        else:
            place = each.data_ptr()
            at.append(place)
            places.append(place)
            low |= place
            kinds.append(each.dtype)
    if low & 15:
        kinds += [place & 15 == 0 for place in places]
    key = tuple(kinds)
    if (found := _COMPILED.get(key)) is None:
        _first(kernel, x, plan, way, given, statics, key)
    else:
        compiled, constants = found
        compiled[way.grid](*at, *way.cut, *constants)


_COMPILED: dict[tuple[Any, ...], tuple[Any, Any]] = {}


def _first(
    kernel: Any,
    x: Tensor,
    plan: Plan,
    way: Way,
    given: tuple[Any, ...],
    statics: tuple[Any, ...],
    key: tuple[Any, ...],
) -> None:
    """By Triton's own way, which compiles it; what is compiled is kept."""
    constants = _constants(kernel, way, statics)
    try:
        compiled = kernel[way.grid](*given, *way.cut, **constants)
    except triton.OutOfResources:  # it may have been fastest where nothing was added
        if way is plan.summed[0] or way in plan.written:
            raise
        plan.taken[kernel.__name__, x.device.index] = plan.summed[0]
        launch(kernel, x, plan, given, statics)
        return
    last = kernel.arg_names[len(given) + len(way.cut) :]
    if len(_COMPILED) >= MOST_SHAPES:
        _COMPILED.clear()
    _COMPILED[key] = compiled, tuple(constants[name] for name in last)


def _constants(kernel: Any, way: Way, statics: tuple[Any, ...]) -> dict[str, Any]:
    known = (*kernel.arg_names, "num_warps")
    how = {name: each for name, each in way.how.items() if name in known}
    return how | dict(statics) | FUSED


def _best(
    kernel: Any, x: Tensor, plan: Plan, given: tuple[Any, ...], statics: tuple[Any, ...]
) -> Way:
    """Kept for the plan, once it was timed or read."""
    ways = plan.summed if "BLOCK_P" in kernel.arg_names else plan.written
    if INTERPRETED or not plan.large or len(ways) == 1:
        which = 0
    elif torch.are_deterministic_algorithms_enabled() or torch.cuda.is_current_stream_capturing():
        return ways[0]
    else:
        key = f"{kernel.__name__} {plan.name} {x.dtype}"
        device = torch.cuda.get_device_name(x.device)
        which = _kept(device).get(key, -1)
        if not 0 <= which < len(ways):
            times = [_milliseconds(kernel, way, given, statics) for way in ways]
            which = times.index(min(times))
            _keep(device, key, which)
    plan.taken[kernel.__name__, x.device.index] = ways[which]
    return ways[which]


def _milliseconds(kernel: Any, way: Way, given: tuple[Any, ...], statics: tuple[Any, ...]) -> float:
    """Infinite where a way wants more shared memory than this device has."""
    with suppress(triton.OutOfResources):
        return _timed(kernel, way, given, statics)
    return math.inf


def _timed(kernel: Any, way: Way, given: tuple[Any, ...], statics: tuple[Any, ...]) -> float:
    names = kernel.arg_names
    apart = tuple(  # what is updated in place is so once only
        each.clone() if isinstance(each, Tensor) and name.startswith("running_") else each
        for name, each in zip(names, given, strict=False)
    )
    constants, times = _constants(kernel, way, statics), []
    for _ in range(_ROUNDS):
        start, end = (_event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_HANDED_OVER)  # type: ignore[no-untyped-call]
        start.record()
        kernel[way.grid](*apart, *way.cut, **constants)
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)))
    return min(times)


def _place(device: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", f"{device} triton {triton.__version__}".lower())
    return cache_folder() / f"kernels-{name}.json"


@cache
def _kept(device: str) -> dict[str, int]:
    return _read(device)


def _read(device: str) -> dict[str, int]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(_place(device).read_text())
        if isinstance(found, dict):
            return {str(key): each for key, each in found.items() if isinstance(each, int)}
    return {}


def _keep(device: str, key: str, which: int) -> None:
    """Beside what others kept meanwhile. Where the folder cannot be written to, each process times
    anew."""
    _kept(device)[key] = which
    found = _kept(device) | _read(device) | {key: which}
    with suppress(OSError, UsageError):
        place = _place(device)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps(found, indent=0, sort_keys=True))


def moments(x: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """For a mean and a variance, float64."""
    kind: Any = {"dtype": torch.float64, "device": x.device}  # two are made faster than unbound
    return torch.empty(shape, **kind), torch.empty(shape, **kind)


def scratch(x: Tensor, plan: Plan, sums: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """For the sums of all parts, for those of the lanes, and a counter of programs."""
    of_parts = torch.empty(sums * plan.parts * plan.whole, dtype=plan.number, device=x.device)
    of_lanes = None
    if plan.folds:
        of_lanes = torch.empty(plan.whole, dtype=torch.float64, device=x.device)
    return of_parts, of_lanes, _counter(x, plan.columns)


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def _counter(x: Tensor, columns: int) -> Tensor:
    """Zeros, which a kernel leaves as zeros, for each stream its own.

    A graph that is captured sets its own to zero: what is made meanwhile is not there outside.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.zeros(columns, dtype=torch.int32, device=x.device)
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
    found = _COUNTERS.get((x.device, stream))
    if found is None or len(found) < columns:
        found = torch.zeros(max(4096, columns), dtype=torch.int32, device=x.device)
        _COUNTERS[x.device, stream] = found
    return found
