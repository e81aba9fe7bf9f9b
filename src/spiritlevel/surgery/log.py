"""What was done to a model, what was left alone, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from torch import nn

__all__ = ["Entry", "Journal", "note"]


@dataclass(frozen=True)
class Entry:
    """One line of `model.spiritlevel_log`.

    `action` is "fused", "replaced", "rewritten", "folded", "converted", "recalibrated", "fixed",
    "equalised" or "left"; `paths` name the modules, "" the model itself.
    """

    action: str
    paths: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        named = ", ".join(path or "the model itself" for path in self.paths)
        return f"{self.action} {named}: {self.why}" if named else f"{self.action}: {self.why}"


def note(model: nn.Module, entries: Iterable[Entry]) -> None:
    """Append to the model's log, a plain attribute that no `state_dict` holds."""
    model.spiritlevel_log = [*getattr(model, "spiritlevel_log", ()), *entries]  # type: ignore[assignment]


class Journal:
    """How to undo each step; a block that raises undoes them all, the last one first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def done(self, undo: Callable[[], object]) -> None:
        self._undo.append(undo)

    def mark(self) -> int:
        return len(self._undo)

    def back_to(self, mark: int) -> None:
        while len(self._undo) > mark:
            self._undo.pop()()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self.back_to(0)
