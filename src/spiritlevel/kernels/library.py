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

from spiritlevel.kernels.compiled import FASTMATH, next_of, pointer
from spiritlevel.kernels.passes import WORK, passes

__all__ = ["kernel"]


@cache
def kernel(step: str, rows: bool, kind: str, act: str, add: str) -> int:
    """The address of `void f(work)`, which does `step` for chunk after chunk until none is left."""
    do = getattr(passes(rows, kind, act, add), step)

    def run(address):
        work = carray(pointer(address), 1, WORK)[0]
        chunks, group, channels = work.chunks, work.group, work.C
        groups = (channels + group - 1) // group
        while True:
            chunk = next_of(address)
            if chunk >= chunks:
                break
            if work.backwards:
                chunk = chunks - 1 - chunk
            first = (chunk % groups) * group
            do(work, chunk // groups, first, min(first + group, channels))

    options = {"fastmath": FASTMATH, "error_model": "numpy", "nopython": True}
    compiled: Any = CFunc(run, ((types.int64,), types.void), locals={}, options=options)
    with suppress(RuntimeError):  # there may be no folder that it could be kept in
        compiled._cache = _Kept(run, (step, rows, kind, act, add, _sources()))
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
    """Numba looks at the age of one file; a kernel is made from four."""
    files = [Path(__file__).with_name(f"{name}.py") for name in _FILES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_FILES = ("library", "passes", "formulas", "compiled")
