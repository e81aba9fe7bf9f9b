"""Hooks that stay behind when a model is copied or saved.

A bound method would take the whole probe along into `copy.deepcopy(model)` or `torch.save(model)`,
and a copy would go on reporting to it. What arrives there instead does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Hook"]


def _nothing(*_: Any, **__: Any) -> None: ...


def _inert() -> Callable[..., None]:
    return _nothing


class Hook:
    """Calls `function(*first, ...)`; its copies and its pickles call nothing."""

    told = False
    """Whether its owner is an observer, too: who tells of a layer need not call it."""

    def __init__(self, function: Callable[..., Any], *first: Any) -> None:
        self.function, self.first = function, first

    def __call__(self, *rest: Any) -> Any:
        return self.function(*self.first, *rest)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _inert, ()
