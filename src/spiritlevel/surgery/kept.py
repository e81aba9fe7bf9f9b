"""What a module holds beside its parameters, buffers and children; modules may be among it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from spiritlevel.lent.kept import own

__all__ = ["kept", "kept_by"]

_NOTHING = CellType()


def kept_by(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that it keeps beside its children, in lists, functions and methods."""
    return kept(own(module))


def kept(value: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The modules in a value, which may hold itself; `seen` are the values around it."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: Iterable[Any] = ()
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, list | tuple | set | frozenset):
        inside = value
    elif isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, functools.partial):
        inside = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        inside = (value.__self__,)
    elif isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        inside = [cell.cell_contents for cell in cells if cell != _NOTHING]
    for each in inside:
        yield from kept(each, seen)
