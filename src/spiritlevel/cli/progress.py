"""How far a run is: on stderr, a bar on a terminal, else a line now and then."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from spiritlevel.catalogue import say
from spiritlevel.cli.lines import printable

if TYPE_CHECKING:
    from rich.console import Console

    from spiritlevel.study import Progress
    from spiritlevel.train.progress import Progress as Trained

__all__ = ["Bar", "Share", "Steps"]


_LINE_SECONDS = 15.0
"""From one line to the next, where there is no terminal."""


class _OnStderr:
    """Within its block a bar, if this is a terminal; what is said stands above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Any = None
        self.last = time.monotonic()
        """When there was a line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar, never broken or coloured."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _is_due(self) -> bool:
        """Whether it is time for another line, which is then taken to be said."""
        now = time.monotonic()
        due = now - self.last > _LINE_SECONDS
        if due:
            self.last = now
        return due


class Bar(_OnStderr):
    """Cells done and the time left."""

    def __init__(self) -> None:
        from rich.console import Console

        from spiritlevel.study.pace import Pace

        super().__init__(Console(stderr=True))
        self.pace = Pace()
        self.folder: Path | None = None

    def tell(self, progress: Progress) -> None:
        """Draw what is done."""
        self.folder = progress.folder
        for note in progress.notes:
            self.say(say("terminal.images", note=note))
        if progress.torn is not None:
            self.say(say("terminal.torn_redone", line=progress.torn[:60]))
        if progress.record is None and progress.done:
            self.say(say("terminal.resumed", done=progress.done, cells=progress.cells))
        if self.console.is_terminal:
            self._draw(progress)
        else:
            self._line(progress)

    def say(self, text: str) -> None:
        """A line above the bar, never coloured; at a terminal broken between words."""
        wrap = not self.console.is_terminal
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=wrap)

    def _told(self, progress: Progress) -> str:
        from spiritlevel.study.pace import clock

        left = clock(self.pace.left(progress))
        return say("terminal.progress", done=progress.done, cells=progress.cells, left=left)

    def _draw(self, progress: Progress) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        if self.bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[told]}"),
            )
            self.bar = RichProgress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task(say("terminal.training"), total=1.0, told="")
            self.bar.start()
        self.bar.update(self.task, completed=progress.share, told=self._told(progress))

    def _line(self, progress: Progress) -> None:
        told = self._told(progress)
        if progress.record is None or progress.done == progress.cells or self._is_due():
            self.last = time.monotonic()
            self.say(f"{say('terminal.training')} {told}")


class Share(_OnStderr):
    """Which share of one piece of work is done, and what is being done."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(Console(stderr=True))

    def tell(self, share: float | None, what: str) -> None:
        """Draw it; `share` is 0 to 1, or None where it is not known."""
        if self.console.is_terminal:
            self._draw(share, what)
        elif share is not None and self._is_due():
            self.say(say("terminal.bench.progress", percent=int(100 * share), what=what))

    def _draw(self, share: float | None, what: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        if self.bar is None:
            columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task(what, total=1.0)
            self.bar.start()
        known = {"total": 1.0, "completed": share} if share is not None else {"total": None}
        self.bar.update(self.task, description=what, **known)


class Steps(_OnStderr):
    """Updates done, how they go, and the time left."""

    _KEPT = 0.95
    """Share of the mean so far in the next: what is shown is of the last twenty updates or so."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console

        class Unread(Console):
            def on_broken_pipe(self) -> None:
                """Whoever read along has left; the run has not."""
                self.quiet = True

        super().__init__(Unread(stderr=True, quiet=quiet))
        self.last = -math.inf  # the first update has a line
        self.mean: dict[str, float] = {}
        self.seen = 0

    def tell(self, at: Trained) -> None:
        if at.note is not None:
            self.say(at.note)
            return
        self._follow(at)
        if self.console.is_terminal:
            self._draw(at)
        elif self._is_due():
            self.say(self._told(at))

    def _follow(self, at: Trained) -> None:
        self.seen += 1
        if self.seen == 2:  # the first update compiles kernels
            self.mean.pop("images_per_second")
        for name in ("loss", "accuracy", "images_per_second"):
            now = getattr(at, name)
            self.mean[name] = self._KEPT * self.mean.get(name, now) + (1 - self._KEPT) * now

    def _told(self, at: Trained) -> str:
        from spiritlevel.study.pace import clock

        speed = self.mean["images_per_second"]
        return say(
            "terminal.train.progress",
            epoch=min(at.step // at.steps_per_epoch + 1, at.epochs),
            epochs=at.epochs,
            loss=self.mean["loss"],
            accuracy=self.mean["accuracy"],
            speed=speed,
            left=clock((at.steps - at.step) * at.batch_size / speed),
        )

    def _draw(self, at: Trained) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if self.bar is None:
            columns = (BarColumn(bar_width=None), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=self.console, transient=True, expand=True)
            self.task = self.bar.add_task("", total=at.steps)
            self.bar.start()
        self.bar.update(self.task, completed=at.step, description=self._told(at))
