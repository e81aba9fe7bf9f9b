"""How long a run has still to go."""

from __future__ import annotations

import time

from spiritlevel.study.run import Progress

__all__ = ["Pace", "clock"]

_ENOUGH = 0.02
"""Of the work: from less, the rest cannot be told."""


class Pace:
    """Told of progress, it knows the seconds left; what was on disk before does not count."""

    def __init__(self) -> None:
        self.began, self.first_share = time.monotonic(), 0.0

    def left(self, progress: Progress) -> float | None:
        """Seconds, or None while too little is done."""
        if progress.record is None:
            self.began, self.first_share = time.monotonic(), progress.share
        gained = progress.share - self.first_share
        if gained < _ENOUGH:
            return None
        return (time.monotonic() - self.began) * (1 - progress.share) / gained


def clock(seconds: float | None) -> str:
    """Such as 4:31, or 1:04:31 from an hour on; –:–– for None."""
    if seconds is None:
        return "–:––"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
