"""The page, rewritten while the run goes: opened once, it keeps itself up to date."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.report.story import Live as Going
from spiritlevel.study.pace import Pace, clock
from spiritlevel.study.run import Progress

__all__ = ["Live"]

_SECONDS = 20
_SHARE = 0.1
"""Of the time, at most, that goes into drawing."""


class Live:
    """Told of progress, it passes that on, and draws the page now and then."""

    def __init__(self, folder: Path, tell: Callable[[Progress], None]) -> None:
        self.folder, self.tell = folder, tell
        self.pace = Pace()
        self.next = 0.0

    def __enter__(self) -> Live:
        return self

    def __exit__(self, fault: object, *_: object) -> None:
        if fault is not None:  # else what follows draws the page
            self._draw(None)

    def __call__(self, progress: Progress) -> None:
        self.tell(progress)
        left = self.pace.left(progress)
        now = time.monotonic()
        if now < self.next or progress.done == progress.cells:
            return
        self._draw(
            {
                "written": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": _SECONDS,
                "done": progress.done,
                "cells": progress.cells,
                "share": progress.share,
                "left": None if left is None else clock(left),
            }
        )
        took = time.monotonic() - now
        self.next = time.monotonic() + max(_SECONDS, took / _SHARE)

    def _draw(self, going: Going | None) -> None:
        from spiritlevel.study import Study

        # A page of half a run that cannot be drawn must not end the run: the next has more of it,
        # and the last, of all of it, is drawn without this.
        with suppress(RecordsError, UsageError):
            Study.load(self.folder).report(live=going)
