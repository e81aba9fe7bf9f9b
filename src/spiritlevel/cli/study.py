"""`spiritlevel study` and `spiritlevel report`."""

from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from spiritlevel.catalogue import say
from spiritlevel.cli import ended, image_options, last_words
from spiritlevel.cli.aside import told_aside
from spiritlevel.cli.lines import tell as tell_user
from spiritlevel.errors import UsageError

if TYPE_CHECKING:
    from spiritlevel.study import Progress, Study

__all__ = ["numbers", "report", "study"]

_IMAGES, _GRID, _RUN = "Images", "Grid", "Run"


def study(
    preset: Annotated[
        str | None,
        typer.Option(help="quick (default; some six minutes), standard (an hour) or smoke."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MODULE:FACTORY",
            help="A network of your own: a function of num_classes, in_chans and norm.",
        ),
    ] = None,
    data: Annotated[str | None, image_options.data(_IMAGES)] = None,
    image_size: Annotated[int | None, image_options.image_size(_IMAGES)] = None,
    mean: Annotated[str | None, image_options.mean(_IMAGES)] = None,
    std: Annotated[str | None, image_options.std(_IMAGES)] = None,
    augment: Annotated[
        bool,
        typer.Option("--augment", help="Random crops and flips.", rich_help_panel=_IMAGES),
    ] = False,
    norms: Annotated[
        str | None, typer.Option(help="Such as batch,none,group:8.", rich_help_panel=_GRID)
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="Learning rates, as 0.1,1.", rich_help_panel=_GRID),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Passes over the training images.", rich_help_panel=_GRID),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The first of consecutive seeds.", rich_help_panel=_GRID)
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="All seeds, as 20,21,22.", rich_help_panel=_GRID),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Its folder. (default: runs/PRESET-TIME)", rich_help_panel=_RUN),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Finish the run in --out, or the latest.", rich_help_panel=_RUN
        ),
    ] = False,
    live: Annotated[
        bool,
        typer.Option("--live", help="Rewrite report.html as it goes.", rich_help_panel=_RUN),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Processes. (default: one a core)", rich_help_panel=_RUN)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Torch threads a cell. (default: 1)", rich_help_panel=_RUN)
    ] = None,
    backend: Annotated[
        str,
        typer.Option(help="loky: here; dask: on a cluster.", rich_help_panel=_RUN),
    ] = "loky",
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Dask's, tcp://HOST:PORT.", rich_help_panel=_RUN),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdicts as JSON.", rich_help_panel=_RUN)
    ] = False,
) -> int:
    """Train with and without normalization on real images; a verdict on each claim, and a page."""
    from spiritlevel.cli.progress import Bar
    from spiritlevel.study import study as run_study
    from spiritlevel.study.factory import load_factory, told_in

    with told_aside() if as_json else nullcontext(), Bar() as bar:
        if model is not None:
            bar.say(load_factory(model).told())

        def tell(progress: Progress) -> None:
            if resume and progress.record is None:
                for told in told_in(progress.folder):
                    bar.say(told)
            bar.tell(progress)
            if ended:
                raise KeyboardInterrupt

        try:
            found = run_study(
                preset=preset,
                model=model,
                data=data,
                image_size=image_size,
                mean=numbers("--mean", mean, float),
                std=numbers("--std", std, float),
                augment=augment or None,
                norms=_split(norms),
                lrs=numbers("--lrs", lrs, float),
                epochs=epochs,
                seeds=numbers("--seeds", seeds, int),
                seed=seed,
                out=out,
                resume=resume,
                live=live,
                jobs=jobs,
                threads=threads,
                backend=backend,
                scheduler=scheduler,
                progress=tell,
            )
        except KeyboardInterrupt:
            if bar.folder is None:
                bar.say(say("terminal.interrupted_early"))
            else:
                bar.say(say("terminal.interrupted", folder=bar.folder))
            last_words.append("stopped")
            raise
    return _finish(found, _draw(found, None), as_json)


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The page. (default: RUN/report.html)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> int:
    """Draw a run's page again, from its records alone."""
    from spiritlevel.study import Study

    found = Study.load(run)
    if found.torn is not None:
        tell_user(say("terminal.torn", line=found.torn[:60]))
    return _finish(found, _draw(found, out), as_json)


def _split(text: str | None) -> list[str] | None:
    """At each comma that a norm's name follows: options, as in ghost:16,eps=1e-3, stay with it."""
    return None if text is None else re.split(r",\s*(?=[a-z-]+(?:[:,]|$))", text.strip())


Number = TypeVar("Number", int, float)


def numbers(option: str, text: str | None, kind: type[Number]) -> list[Number] | None:
    """From text with commas between. Raises UsageError."""
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        example = "10,11,12" if kind is int else "0.1,0.3,1"
        raise UsageError(
            f"got {option} {text}; wanted numbers with commas between, such as {example}"
        ) from None


def _draw(found: Study, out: Path | None) -> Path:
    print(say("terminal.drawing"), file=sys.stderr)
    return found.report(out)


def _finish(found: Study, page: Path, as_json: bool) -> int:
    """Verdicts and the page's path; 1 where a cell failed."""
    from spiritlevel.cli.verdicts import print_verdicts

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
        print_verdicts(found)
        print(say("terminal.page", path=page))
    for record in failed:
        tell_user(say("terminal.failed", cell=record.key, error=record.error))
    return 1 if failed else 0
