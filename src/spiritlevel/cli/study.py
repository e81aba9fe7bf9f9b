"""`spiritlevel study` and `spiritlevel report`."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from spiritlevel.catalogue import say
from spiritlevel.errors import UsageError

if TYPE_CHECKING:
    from spiritlevel.study import Progress, Study

__all__ = ["report", "study"]


def study(
    preset: Annotated[
        str | None,
        typer.Option(help="quick (the default, under five minutes) or smoke."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="mnist5k, digits or folder:PATH. [default: the preset's]")
    ] = None,
    norms: Annotated[
        str | None, typer.Option(help="Norms of the sweep, such as none,batch,group:8.")
    ] = None,
    lrs: Annotated[
        str | None, typer.Option(help="Learning rates of the sweep, such as 0.1,1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The first of consecutive seeds.")] = None,
    seeds: Annotated[str | None, typer.Option(help="All seeds, such as 20,21,22.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: runs/PRESET-TIME]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish the run in --out, or the latest.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes. [default: one a core]")] = None,
    threads: Annotated[int | None, typer.Option(help="Torch threads a cell. [default: 1]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> int:
    """Train with and without normalization on real images; a verdict on each claim, and a page."""
    from spiritlevel.study import study as run_study

    with Bar() as bar:
        try:
            found = run_study(
                preset=preset,
                data=data,
                norms=_split(norms),
                lrs=_numbers("--lrs", lrs, float),
                seeds=_numbers("--seeds", seeds, int),
                seed=seed,
                out=out,
                resume=resume,
                jobs=jobs,
                threads=threads,
                progress=bar.tell,
            )
        except KeyboardInterrupt:
            if bar.folder is not None:
                bar.say(say("terminal.interrupted", folder=bar.folder))
            raise
    return _finish(found, _draw(found, None), as_json)


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The page. [default: RUN/report.html]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> int:
    """Draw a run's page again, from its records alone."""
    from spiritlevel.study import Study

    found = Study.load(run)
    if found.torn is not None:
        print(say("terminal.torn", line=found.torn[:60]), file=sys.stderr)
    return _finish(found, _draw(found, out), as_json)


def _split(text: str | None) -> list[str] | None:
    """At each comma that a norm's name follows: options, as in ghost:16,eps=1e-3, stay with it."""
    return None if text is None else re.split(r",\s*(?=[a-z-]+(?:[:,]|$))", text.strip())


Number = TypeVar("Number", int, float)


def _numbers(option: str, text: str | None, kind: type[Number]) -> list[Number] | None:
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"got {option} {text}; wanted numbers with commas between, such as 10,11,12"
        ) from None


def _draw(found: Study, out: Path | None) -> Path:
    print(say("terminal.drawing"), file=sys.stderr)
    return found.report(out)


def _finish(found: Study, page: Path, as_json: bool) -> int:
    """Verdicts and the page's path; 1 where a cell failed."""
    if found.rules_changed:
        print(say("terminal.rules_changed"), file=sys.stderr)
    failed = found.records.failed()
    if found.missing:
        cells, folder = found.config["cells"], found.folder
        missing = len(found.missing)
        print(say("terminal.missing", missing=missing, cells=cells, folder=folder), file=sys.stderr)
    if as_json:
        verdicts = [verdict.to_json() for verdict in found.verdicts.values()]
        told = {"run": str(found.folder), "report": str(page), "verdicts": verdicts}
        print(json.dumps(told | {"failed": [record.key for record in failed]}, indent=2))
    else:
        _print_table(found)
        print(say("terminal.page", path=page))
    for record in failed:
        print(say("terminal.failed", cell=record.key, error=record.error), file=sys.stderr)
    return 1 if failed else 0


def _print_table(found: Study) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from spiritlevel.study.story import interval_text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("claim", "verdict", "figure", "interval"):
        table.add_column(say(f"terminal.{name}"), overflow="fold")
    for claim, verdict in found.verdicts.items():
        headline = verdict.headline
        table.add_row(
            Text.assemble(
                say(f"terminal.claims.{claim}"),
                (f"\n{say(headline.quantity, **headline.words)}\n", "dim"),
            ),
            Text(f"{_MARKS[verdict.status]} {verdict.status}", _COLOURS[verdict.status]),
            headline.text,
            interval_text(headline) or "–",
        )
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print()
    for line in found.examples:
        console.print(line, soft_wrap=not console.is_terminal)
    console.print()


_MARKS = {"supported": "✓", "partly": "◐", "not supported": "✗", "inconclusive": "?"}
_COLOURS = {
    "supported": "green",
    "partly": "yellow",
    "not supported": "red",
    "inconclusive": "dim",
}


class Bar:
    """Cells done and the time left: on stderr, a bar on a terminal, else a line now and then."""

    LINE_SECONDS = 15.0

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.began = self.last = time.monotonic()
        self.first_share = 0.0
        self.bar: Any = None
        self.folder: Path | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def tell(self, progress: Progress) -> None:
        self.folder = progress.folder
        if progress.torn is not None:
            self.say(say("terminal.torn_redone", line=progress.torn[:60]))
        if progress.record is None:
            self.began, self.first_share = time.monotonic(), progress.share
            if progress.done:
                self.say(say("terminal.resumed", done=progress.done, cells=progress.cells))
        if self.console.is_terminal:
            self._draw(progress)
        else:
            self._line(progress)

    def say(self, text: str) -> None:
        """A line above the bar, never broken or coloured."""
        wrap = not self.console.is_terminal
        self.console.print(text, markup=False, highlight=False, soft_wrap=wrap)

    def _left(self, progress: Progress) -> str:
        spent = time.monotonic() - self.began
        gained = progress.share - self.first_share
        if gained < 0.02:
            return "–:––"
        seconds = round(spent * (1 - progress.share) / gained)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _told(self, progress: Progress) -> str:
        done, cells = progress.done, progress.cells
        return say("terminal.progress", done=done, cells=cells, left=self._left(progress))

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
        now = time.monotonic()
        if (
            progress.record is None
            or progress.done == progress.cells
            or now - self.last > self.LINE_SECONDS
        ):
            self.last = now
            self.say(f"{say('terminal.training')} {self._told(progress)}")
