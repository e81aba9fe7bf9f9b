"""From a pass to a C function that any thread may call, compiled once and kept on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator
from numba.core.ccallback import CFunc

from spiritlevel.kernels.compiled import (
    OPTIONS,
    add_to,
    array,
    at_address,
    call,
    named,
    naming,
    wait,
)
from spiritlevel.kernels.formulas import OF_THE_PACKAGE, emptied_by_add
from spiritlevel.kernels.passes import STAGE, WORK, passes

__all__ = ["kernel", "step"]


@emptied_by_add
@cache
def step(name: str, layout: str, kind: str, act: str, add: str) -> int:
    """The address of `void step(work, part, first, last)`: a pass over a chunk."""
    do, work_at = passes(layout, kind, act, add)[name], at_address(WORK)

    def run(address, part, first, last):
        do(work_at(address), part, first, last)

    return _compiled(run, 4, (name, layout, kind, act, add), keep=act in OF_THE_PACKAGE)


@cache
def kernel() -> int:
    """The address of `void kernel(work)`, which any number of threads may run at once.

    Stage by stage each takes chunk after chunk until none is left, and waits for the others; a
    stage is one step, or all of them, one after the other, for the same chunk.
    """

    work_at, (stage_at, _, _) = at_address(WORK), array("stages", np.int64)

    def run(address):
        work = work_at(address)
        at_once = work.at_once
        for stage in range(1 if at_once else work.steps):
            at, here = len(STAGE) * stage, address + 8 * len(STAGE) * stage
            step, chunks, group, backwards = (
                *(stage_at(address, at + 2), stage_at(address, at + 3)),
                *(stage_at(address, at + 4), stage_at(address, at + 5)),
            )
            groups = (work.C + group - 1) // group
            while True:
                chunk = add_to(here, 1)
                if chunk >= chunks:
                    break
                if backwards:
                    chunk = chunks - 1 - chunk
                part, first = chunk // groups, (chunk % groups) * group
                last = min(first + group, work.C)
                call(step, address, part, first, last)
                for other in range(1, work.steps if at_once else 1):
                    call(stage_at(address, len(STAGE) * other + 2), address, part, first, last)
                add_to(here + 8, 1)
            while add_to(here + 8, 0) < chunks:
                wait()

    return _compiled(run, 1, ("kernel",))


def _compiled(run: Any, arguments: int, name: tuple[str, ...], keep: bool = True) -> int:
    with naming(*name):
        named(run)
    signature = ((types.int64,) * arguments, types.void)
    compiled: Any = CFunc(run, signature, locals={}, options={**OPTIONS, "nopython": True})
    try:
        if keep:
            compiled._cache = _Kept(run, (*name, _sources()))
    except RuntimeError:
        _warn("no folder that Numba could write to")
    compiled.compile()
    _ALIVE.append(compiled)
    return int(compiled.address)


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"kernels could not be kept on disk ({reason}), so that each process compiles them anew; "
        "set NUMBA_CACHE_DIR to a folder that can be written to",
        stacklevel=2,
    )


_ALIVE: list[Any] = []


class _Given(UserProvidedCacheLocator):
    """The folder of NUMBA_CACHE_DIR, which may be one that can only be read."""

    def ensure_cache_path(self) -> None:
        if not os.path.isdir(self.get_cache_path()):
            super().ensure_cache_path()


class _Files(CompileResultCacheImpl):
    _locator_classes = (_Given, *CompileResultCacheImpl._locator_classes)


class _Kept(FunctionCache):
    """Numba keys a closure by what it closes over, which is new in each process; this, by name."""

    _impl_class = _Files

    def __init__(self, function: Any, name: tuple[Any, ...]) -> None:
        super().__init__(function)
        self._name_of = name

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Numba would get ready to compile first, for which it imports half of SciPy."""
        try:
            return self._load_overload(sig, target_context)
        except Exception:  # a damaged file raises whatever its bytes happen to mean
            with suppress(OSError):
                self.flush()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            self._save_overload(sig, data)
        except Exception as error:
            _warn(f"{type(error).__name__}: {error}")

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return signature, codegen.magic_tuple(), self._name_of


@cache
def _sources() -> str:
    """Numba looks at the age of one file; a kernel is made from these."""
    files = [Path(__file__).with_name(f"{name}.py") for name in _FILES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_FILES = (
    *("library", "passes", "planes", "lanes", "cheap", "cheap_rows", "products", "gates"),
    *("sliding", "halving", "branched", "branched_rows", "mixed", "mapped"),
    *("channels", "formulas", "vectors", "compiled", "linked"),
)
