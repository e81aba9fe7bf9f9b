"""From a pass to a C function that any thread may call, compiled once and kept on disk."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import carray, types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

from spiritlevel.kernels.compiled import OPTIONS, call, next_of, pointer
from spiritlevel.kernels.passes import WORK, passes

__all__ = ["kernel", "step"]


@cache
def step(name: str, layout: str, kind: str, act: str, add: str) -> int:
    """The address of `void step(work, part, first, last)`: a pass over a chunk."""
    do = passes(layout, kind, act, add)[name]

    def run(address, part, first, last):
        do(carray(pointer(address), 1, WORK)[0], part, first, last)

    return _compiled(run, 4, (name, layout, kind, act, add))


@cache
def kernel() -> int:
    """The address of `void kernel(work)`, which takes chunk after chunk until none is left."""

    def run(address):
        work = carray(pointer(address), 1, WORK)[0]
        chunks, group = work.chunks, work.group
        groups = (work.C + group - 1) // group
        while True:
            chunk = next_of(address)
            if chunk >= chunks:
                break
            if work.backwards:
                chunk = chunks - 1 - chunk
            part, first = chunk // groups, (chunk % groups) * group
            last = min(first + group, work.C)
            call(work.step_0, address, part, first, last)
            if work.steps > 1:
                call(work.step_1, address, part, first, last)
            if work.steps > 2:
                call(work.step_2, address, part, first, last)
            if work.steps > 3:
                call(work.step_3, address, part, first, last)

    return _compiled(run, 1, ("kernel",))


def _compiled(run: Any, arguments: int, name: tuple[str, ...]) -> int:
    signature = ((types.int64,) * arguments, types.void)
    compiled: Any = CFunc(run, signature, locals={}, options={**OPTIONS, "nopython": True})
    with suppress(RuntimeError):  # there may be no folder that it could be kept in
        compiled._cache = _Kept(run, (*name, _sources()))
    compiled.compile()
    _ALIVE.append(compiled)
    return int(compiled.address)


_ALIVE: list[Any] = []


class _Kept(FunctionCache):
    """Numba keys a closure by what it closes over, which is new in each process; this, by name."""

    def __init__(self, function: Any, name: tuple[Any, ...]) -> None:
        super().__init__(function)
        self._name_of = name

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return signature, codegen.magic_tuple(), self._name_of


@cache
def _sources() -> str:
    """Numba looks at the age of one file; a kernel is made from these."""
    files = [Path(__file__).with_name(f"{name}.py") for name in _FILES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_FILES = ("library", "passes", "planes", "lanes", "channels", "formulas", "compiled")
