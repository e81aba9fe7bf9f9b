"""A study in a notebook: how far it is, in place of a bar, and its verdicts as a table.

Plain HTML with inline style and no script. It takes the notebook's own colours, light or dark.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spiritlevel.catalogue import say
from spiritlevel.report.notebook import DIM, block, cell, lines, table
from spiritlevel.study.factory import Factory, told_in
from spiritlevel.study.pace import Pace, clock
from spiritlevel.study.records import Record
from spiritlevel.study.run import Progress
from spiritlevel.study.table import HEADS, Row, verdict_rows

if TYPE_CHECKING:
    from spiritlevel.study import Study

__all__ = ["Watch", "study_html", "watch"]

_LATEST = 5
_WIDE = "min-width:13em"
_SECONDS = 0.5
"""From one drawing to the next: a notebook keeps up with two a second."""


def watch(factory: Factory | None) -> Watch | None:
    """What to tell of progress in a notebook; None where this is none, such as in a script."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    # IPython in a terminal has no kernel: there HTML would be shown as its source.
    return Watch(factory) if getattr(shell, "kernel", None) is not None else None


class Watch:
    """Told of progress, it draws it in one output of the cell, again and again.

    Before all else it names the user's code that is about to run.
    """

    def __init__(self, factory: Factory | None) -> None:
        self.display: Any = import_module("IPython.display")
        self.notes: list[str] = [] if factory is None else [factory.told()]
        first = self.display.HTML(lines(self.notes))
        self.handle: Any = self.display.display(first, display_id=True)
        self.pace = Pace()
        self.latest: deque[Record] = deque(maxlen=_LATEST)
        self.next = 0.0

    def __call__(self, progress: Progress) -> None:
        left = self.pace.left(progress)
        if progress.record is None:
            self.notes = self.notes or told_in(progress.folder)
            self.notes += [say("terminal.images", note=note) for note in progress.notes]
        else:
            self.latest.append(progress.record)
        if progress.torn is not None:
            self.notes.append(say("terminal.torn_redone", line=progress.torn[:60]))
        if progress.done == progress.cells:
            self._draw(progress_html(progress, left, [], self.notes), _verdicts_of(progress))
        elif time.monotonic() >= self.next:
            self._draw(progress_html(progress, left, self.latest, self.notes))
            self.next = time.monotonic() + _SECONDS

    def _draw(self, *parts: str) -> None:
        self.handle.update(self.display.HTML("".join(parts)))


def _verdicts_of(progress: Progress) -> str:
    from spiritlevel.study import Study

    return study_html(Study.load(progress.folder))


def progress_html(
    progress: Progress, left: float | None, latest: Iterable[Record], notes: Iterable[str]
) -> str:
    """A bar, the time left and the latest results."""
    told = say("terminal.progress", done=progress.done, cells=progress.cells, left=clock(left))
    title = escape(say("terminal.training"))
    bar = (
        f'<progress value="{progress.share:.4f}" max="1" aria-label="{title}" '
        'style="width:20em;vertical-align:middle"></progress>'
    )
    rows = [_result_row(record) for record in latest]
    results = table([], rows) if rows else ""
    return block(f"{lines(notes)}<div>{title}</div>{bar} {escape(told)}{results}")


def _result_row(record: Record) -> list[str]:
    """A run: its task, what set it apart, what came of it."""
    words = [f"{name} {_short(value)}" for name, value in record.settings.items() if name in _APART]
    if record.error is not None:
        result = escape(say("terminal.failed", cell=record.task, error=record.error[:200]))
    else:
        result = escape(", ".join(_results(record.result or {})))
    parts = (escape(record.task), escape(", ".join(words)), result, f"{record.seconds:.1f}\u00a0s")
    return [cell(part, DIM) for part in parts]


_APART = ("network", "model", "norm", "lr", "init", "depth", "seed")
_TOLD = ("final_loss", "final_accuracy", "test_accuracy")


def _results(result: dict[str, Any]) -> Iterator[str]:
    for name in _TOLD:
        if isinstance(result.get(name), int | float):
            yield f"{name.replace('_', ' ')} {result[name]:.3g}"
    if isinstance(result.get("diverged_at"), int):
        yield say("terminal.diverged", step=result["diverged_at"])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def study_html(study: Study) -> str:
    """Claim, verdict, figure and interval, and where the page is; network by network beneath."""
    heads = [say(f"terminal.{name}") for name in HEADS]
    verdicts = table(heads, map(_verdict_row, verdict_rows(study.verdicts)))
    page = study.folder / "report.html"
    notes = list(study.examples)
    if page.exists():
        notes.append(say("terminal.page", path=page))
    else:
        notes.append(say("terminal.records", path=study.folder))
    if study.missing:
        values = {"missing": len(study.missing), "cells": study.config["cells"]}
        notes.append(say("terminal.missing", folder=study.folder, **values))
    if study.rules_changed:
        notes.append(say("terminal.rules_changed"))
    return block(verdicts, lines(notes, DIM))


def _verdict_row(row: Row) -> list[str]:
    title = escape(row.title)
    if row.quantity:
        first = cell(f'{title}<div style="{DIM}">{escape(row.quantity)}</div>', _WIDE)
    else:
        first = cell(title, f"padding-left:2em;{_WIDE}")
    status = cell(f"<b>{escape(f'{row.mark} {row.verdict}')}</b>")
    return [first, status, cell(escape(row.figure)), cell(escape(row.interval))]
