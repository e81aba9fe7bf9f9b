"""Functions that are only ever linked into a kernel: half of the time a kernel takes to compile.

Numba makes machine code of each function that another calls, of which no more than its IR is used.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

__all__ = ["Linked"]


class Linked(Compiler):  # type: ignore[misc]
    """A pipeline for `njit` that stops at the IR, which is optimized where it has been inlined."""

    def compile_extra(self, func: Any) -> Any:
        context = self.state.targetctx
        self.state.library = _Library(context.codegen(), func.__qualname__)
        self.state.flags.no_compile = True
        result = super().compile_extra(func)
        found, library = result.fndesc, result.library
        # By an object of its own the function is known to those that call it.
        parts = (found.lookup_module(), found.qualname, "", 0, result.environment, (library,))
        known_by = _dynfunc.make_function(*parts)
        context.insert_user_function(known_by, found, [library])
        return result._replace(entry_point=known_by)


class _Library(JITCodeLibrary):  # type: ignore[misc]
    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True
