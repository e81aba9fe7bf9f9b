"""Modules that torch does not know of: those that a module holds beside its children."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from spiritlevel.lent.kept import own_values

__all__ = ["hidden_in", "modules_in"]

_NOTHING = CellType()


def hidden_in(module: nn.Module) -> Iterator[nn.Module]:
    """Those in its own lists, dicts, functions, methods and objects."""
    return modules_in(own_values(module))


def modules_in(value: Any) -> Iterator[nn.Module]:
    """All in a value, which may hold itself; not what is inside of them."""
    seen: set[int] = set()
    queue: list[Any] = [value]
    while queue:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, nn.Module):
            yield each
        else:
            queue += _inside(each)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, weakref.ref):
        return (value(),)
    if isinstance(value, MethodType):
        return (value.__self__,)
    if isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        return [cell.cell_contents for cell in cells if cell != _NOTHING]
    if isinstance(value, Tensor | type | ModuleType):
        return ()
    return getattr(value, "__dict__", {}).values()
