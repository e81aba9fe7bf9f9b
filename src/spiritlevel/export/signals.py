"""The stack on which this thread takes its signals, kept as it is."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["same_signal_stack", "signal_stack"]


class _Stack(ctypes.Structure):
    """stack_t of <signal.h> on Linux."""

    _fields_ = (
        ("start", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


@contextmanager
def same_signal_stack() -> Iterator[None]:
    """Afterwards the thread has the stack for signals that it had before.

    OpenVINO gives a thread a new one with each model that it compiles, and puts the last one back
    when that model goes, in whatever order they go: the thread is then left with memory that is no
    more, and the next signal that Python takes, of Ctrl-C or of a child's end, kills the process.
    """
    before = _stack()
    try:
        yield
    finally:
        if before is not None:
            _libc().sigaltstack(ctypes.byref(before), None)


def signal_stack() -> tuple[int | None, int] | None:
    """Where it begins, and its bytes; None on other systems than Linux."""
    found = _stack()
    return None if found is None else (found.start, found.size)


def _stack() -> _Stack | None:
    if not sys.platform.startswith("linux"):
        return None
    found = _Stack()
    return found if _libc().sigaltstack(None, ctypes.byref(found)) == 0 else None


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
