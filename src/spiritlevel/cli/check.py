"""`spiritlevel check` and `spiritlevel rule`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from spiritlevel.catalogue import say
from spiritlevel.cli import image_options
from spiritlevel.cli.aside import told_aside
from spiritlevel.cli.lines import tell
from spiritlevel.errors import UsageError

if TYPE_CHECKING:
    from spiritlevel.cli.subject import Subject
    from spiritlevel.doctor.diagnosis import Diagnosis
    from spiritlevel.lent.feeding import Progress

__all__ = ["check", "rule"]

Form = Literal["table", "json", "sarif", "html"]
Severity = Literal["error", "warning", "info"]
_MODEL, _DATA, _RULES, _OUTPUT = "Model", "Data", "Rules", "Output"
_BATCH = 64


def check(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="PKG.MODULE:FACTORY",
            help="A function that builds your model, or the name of one of ours.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Its state_dict: .safetensors, .pth, .pt. Nothing in it is run.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    map_location: Annotated[
        str, typer.Option(help="Where the model runs, as cuda:0.", rich_help_panel=_MODEL)
    ] = "cpu",
    data: Annotated[str | None, image_options.data(_DATA)] = None,
    loader: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MODULE:LOADER",
            help="Batches of your own: an iterable, or a function that returns one.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    image_size: Annotated[int | None, image_options.image_size(_DATA)] = None,
    mean: Annotated[str | None, image_options.mean(_DATA)] = None,
    std: Annotated[str | None, image_options.std(_DATA)] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images a batch of --data. (default: 64)", rich_help_panel=_DATA),
    ] = None,
    batches: Annotated[int, typer.Option(help="To measure on.", rich_help_panel=_DATA)] = 32,
    select: Annotated[
        str | None,
        typer.Option(metavar="RULES", help="Ask only these, as SL2,SL301.", rich_help_panel=_RULES),
    ] = None,
    ignore: Annotated[
        str | None,
        typer.Option(metavar="RULES", help="Do not ask these.", rich_help_panel=_RULES),
    ] = None,
    fail_on: Annotated[
        Severity | None,
        typer.Option(
            help="Exit 1 from this severity on. (default: warning)", rich_help_panel=_RULES
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Accept the findings in this file.", rich_help_panel=_RULES),
    ] = None,
    write_baseline: Annotated[
        Path | None,
        typer.Option(help="Accept today's findings: write them there.", rich_help_panel=_RULES),
    ] = None,
    list_rules: Annotated[
        bool, typer.Option("--list-rules", help="List the rules, and end.", rich_help_panel=_RULES)
    ] = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Do what is mechanical, and check again.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    fix_out: Annotated[
        Path | None,
        typer.Option(
            help="With --fix: the weights then, .safetensors or .pth.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    form: Annotated[
        Form, typer.Option("--format", help="What to print.", rich_help_panel=_OUTPUT)
    ] = "table",
    out: Annotated[
        Path | None, typer.Option(help="Into this file instead.", rich_help_panel=_OUTPUT)
    ] = None,
) -> int:
    """What is wrong with a model's normalization, with the numbers that show it.

    Exit 0: nothing at or above --fail-on; 1: findings; 2: wrong use. Where they are not given,
    select, ignore, fail-on and baseline are those of tool.spiritlevel in pyproject.toml.
    """
    from spiritlevel.cli.findings import print_rules
    from spiritlevel.doctor.config import settings

    if list_rules:
        print_rules()
        return 0
    if model is None:
        raise UsageError(
            "got no model to check; wanted pkg.module:factory, or the name of one of ours, as: "
            "spiritlevel check my.models:build --data folder:photos"
        )
    images = _Images(data, loader, image_size, mean, std, batch_size, batches)
    _refuse(images, fix, fix_out, (out, write_baseline))
    own = settings(Path.cwd())
    chosen = {"select": select or own.select, "ignore": ignore or own.ignore}
    accepted = None if write_baseline else baseline or own.baseline
    _refuse_choice(chosen, accepted)
    with told_aside(), _progress(model) as progress:
        subject, fed = _built(model, weights, map_location, images)
        found = _diagnosed(subject, fed, batches, chosen, accepted, progress)
        if fix:
            found = _accept(found.apply(), accepted)
    if fix:
        _keep(subject, fix_out)
    if write_baseline is not None:
        if out is not None:
            _write(found, form, out, subject)
        return _write_baseline(write_baseline, found)
    _write(found, form, out, subject)
    return 1 if found.reaches(fail_on or own.fail_on or "warning") else 0


class _Images(NamedTuple):
    """What the command line says of the batches."""

    data: str | None
    loader: str | None
    image_size: int | None
    mean: str | None
    std: str | None
    batch_size: int | None
    most: int


def _refuse(
    images: _Images,
    fix: bool,
    fix_out: Path | None,
    files: tuple[Path | None, ...],
) -> None:
    """Raises UsageError for options that do not go together, before any code of the user's runs."""
    from spiritlevel.files import refuse_unwritable
    from spiritlevel.models.weights import refuse_suffix

    if images.data is not None and images.loader is not None:
        raise UsageError("got --data and --loader; wanted one of them. Leave the other out")
    if images.data is None:
        for name in ("image_size", "mean", "std", "batch_size"):
            if getattr(images, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"got {option} without --data, whose images it is for. Add --data")
    for name, value in (("--batches", images.most), ("--batch-size", images.batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"got {name} {value}; wanted 1 or more")
    if fix_out is not None:
        if not fix:
            raise UsageError("got --fix-out without --fix; wanted both. Add --fix")
        refuse_suffix(fix_out)
    for file in (*files, fix_out):
        if file is not None:
            refuse_unwritable(file)


def _built(spec: str, weights: Path | None, device: str, images: _Images) -> tuple[Subject, Any]:
    """The model and its batches, or None. On stderr it says which code of the user's runs."""
    from spiritlevel.cli import subject
    from spiritlevel.cli.study import numbers
    from spiritlevel.models.weights import load_weights

    builder = subject.builder(spec)
    if (told := builder.told()) is not None:
        tell(told)
    read = None
    if images.data is not None:
        batch_size = images.batch_size or _BATCH
        read = subject.read_images(
            images.data,
            image_size=images.image_size,
            mean=numbers("--mean", images.mean, float),
            std=numbers("--std", images.std, float),
            batch_size=batch_size,
            most=images.most,
        )
        tell(say("terminal.check.fed", name=read.name, fed=read.fed, batch_size=batch_size))
    built = builder.build(None if read is None else read.prepared)
    subject.moved(built.model, device, "--map-location")
    if weights is not None:
        load_weights(built.model, weights)
    if images.loader is None:
        return built, read
    loader, place = subject.named_loader(images.loader)
    tell(say("terminal.check.own_loader", spec=images.loader, place=place))
    return built, loader


def _diagnosed(
    subject: Subject,
    fed: Any,
    most: int,
    chosen: dict[str, Any],
    accepted: Path | None,
    progress: Progress | None,
) -> Diagnosis:
    from spiritlevel.doctor.check import check as diagnose

    found = diagnose(subject.model, fed, most_batches=most, progress=progress, **chosen)
    return _accept(replace(found, model=subject.spec), accepted)


def _refuse_choice(chosen: dict[str, Any], accepted: Path | None) -> None:
    """What is wrong of these is told before anything of the user's runs."""
    from spiritlevel.doctor import check as _rules  # noqa: F401
    from spiritlevel.doctor.baseline import read
    from spiritlevel.doctor.choice import chosen as choose

    choose(**chosen)
    if accepted is not None:
        read(accepted)


def _accept(found: Diagnosis, path: Path | None) -> Diagnosis:
    from spiritlevel.doctor.baseline import accepted

    return found if path is None else found.accept(accepted(path, found.model))


def _write_baseline(path: Path, found: Diagnosis) -> int:
    from spiritlevel.doctor.baseline import write

    write(path, found.model, found.findings)
    count = len(found.findings)
    print(say("terminal.check.accepted", count=count, model=found.model, path=path))
    return 0


def _keep(subject: Subject, path: Path | None) -> None:
    from spiritlevel.models.weights import save_weights

    if path is None:
        tell(say("terminal.check.unsaved"))
    else:
        save_weights(subject.model, path)
        tell(say("terminal.check.weights", path=path))


def _write(found: Diagnosis, form: Form, out: Path | None, subject: Subject) -> None:
    from spiritlevel.cli.findings import print_findings, shown
    from spiritlevel.files import write_whole

    if form == "table" and out is None:
        print_findings(found)
        return
    make: dict[str, Callable[[], str]] = {
        "table": lambda: shown(found),
        "json": found.to_json,
        "sarif": lambda: found.to_sarif(subject.source),
        "html": lambda: found.to_html(),
    }
    text = make[form]()
    if out is None:
        # A page says that it is UTF-8, whatever the terminal's encoding.
        typer.echo(text.encode() if form == "html" else text)
    else:
        write_whole(out, text.rstrip("\n") + "\n")
        tell(say("terminal.check.written", path=out, summary=found.summary()))


@contextmanager
def _progress(model: str) -> Iterator[Progress | None]:
    """On a terminal, what is measured; else nothing."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with console.status(model) as status:
        yield lambda what, done, total: status.update(
            say("terminal.check.measuring", what=what, done=done, total=total)
        )


def rule(
    id: Annotated[str, typer.Argument(metavar="RULE", help="As SL203.")],
) -> None:
    """What a rule says of itself: what is wrong, why it matters, when it is silent."""
    from spiritlevel.cli.findings import print_rule

    print_rule(id)
