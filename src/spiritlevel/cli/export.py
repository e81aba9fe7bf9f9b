"""`spiritlevel export`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spiritlevel.catalogue import listed, say
from spiritlevel.cli import ended, image_options, trained
from spiritlevel.cli.aside import told_aside
from spiritlevel.cli.lines import printable, tell
from spiritlevel.errors import ExportError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from spiritlevel.cli.subject import Images, Subject
    from spiritlevel.data import Prepared
    from spiritlevel.export import ExportReport, Normalization

__all__ = ["export"]

Format = Literal["onnx", "pt2", "openvino", "int8"]
_MODEL, _DATA, _OUTPUT = "Model", "Data", "Output"
_WIDE = 76
"""Columns of a terminal that the report's table fits; below, each row is a block."""


def export(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_WEIGHTS",
            help="The folder of a run, whose best weights are taken, or a file of weights.",
        ),
    ],
    to: Annotated[Format, typer.Option(help="What to write.", rich_help_panel=_OUTPUT)] = "onnx",
    data: Annotated[str | None, image_options.data(_DATA)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file. (default: beside the weights, by their name)", rich_help_panel=_OUTPUT
        ),
    ] = None,
    model: Annotated[str | None, image_options.model(_MODEL)] = None,
    recalibrate: Annotated[
        bool,
        typer.Option(
            "--recalibrate",
            help="Exact population statistics first, of training images.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="That OpenVINO computes in.", rich_help_panel=_OUTPUT),
    ] = "float32",
    image_size: Annotated[int | None, image_options.image_size(_DATA)] = None,
    mean: Annotated[str | None, image_options.mean(_DATA)] = None,
    std: Annotated[str | None, image_options.std(_DATA)] = None,
    batch_size: Annotated[int, typer.Option(help="Images a batch.", rich_help_panel=_DATA)] = 64,
    batches: Annotated[
        int,
        typer.Option(help="Of training images, for --recalibrate and int8.", rich_help_panel=_DATA),
    ] = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=_OUTPUT)
    ] = False,
) -> int:
    """A model as a file, its batch norms folded away, that is proven on the test images.

    Exit 0: the file is there and right; 1: it is not right, and nothing is left behind; 2: wrong
    use. The file takes any batch and tells its classes and how images are normalised.
    """
    from spiritlevel.cli.study import numbers
    from spiritlevel.cli.subject import read_images
    from spiritlevel.export import FORMATS, ExportReport
    from spiritlevel.files import refuse_unwritable

    if data is None:
        raise UsageError(
            "got no --data; wanted the images that the file is verified on, as --data mnist5k"
        )
    for name, value in (("--batches", batches), ("--batch-size", batch_size)):
        if value < 1:
            raise UsageError(f"got {name} {value}; wanted 1 or more")
    if precision != "float32" and to != "openvino":
        raise UsageError(f"got --precision {precision} for {to}; wanted it with --to openvino")
    run = trained.Weights.of(weights)
    target = _target(run.file, to, FORMATS[to]) if out is None else out
    if target.suffix != FORMATS[to]:
        raise UsageError(
            f"got --out {target} for --to {to}; wanted a name that ends in {FORMATS[to]}. Rename "
            "it, or give another --to"
        )
    refuse_unwritable(target)
    fed = run.preprocessing
    read = read_images(
        data,
        image_size=fed.size if image_size is None and fed else image_size,
        mean=list(fed.mean) if mean is None and fed else numbers("--mean", mean, float),
        std=list(fed.std) if std is None and fed else numbers("--std", std, float),
        batch_size=batch_size,
        most=batches,
    )
    with told_aside():
        subject = run.model(model, read.prepared, f"data {read.name}")
        _tell(subject, run.file or weights, read, recalibrate, to == "int8")
        try:
            report = _exported(
                subject,
                read,
                batch_size,
                run.recipe,
                target=target,
                to=to,
                precision=precision,
                recalibrate=recalibrate,
            )
        except ExportError as error:
            if not isinstance(error.report, ExportReport):
                raise
            report, failure = error.report, str(error)
        else:
            failure = ""
    _print(report, as_json)
    if failure:
        tell(f"spiritlevel: {failure}")
    return 0 if report.ok else 1


def _target(file: Path | None, to: str, suffix: str) -> Path:
    if file is None:
        raise UsageError("got weights of the hub and no --out; wanted a name for the file")
    return file.with_name(f"{file.stem}-int8{suffix}" if to == "int8" else file.stem + suffix)


def _exported(
    subject: Subject,
    read: Images,
    batch_size: int,
    recipe: Any,
    *,
    target: Path,
    to: str,
    precision: str,
    recalibrate: bool,
) -> ExportReport:
    from spiritlevel.cli.progress import Share
    from spiritlevel.export import export as write

    prepared = read.prepared
    with Share() as bar:

        def progress(what: str, done: int, total: int) -> None:
            bar.tell(done / total if done else None, what)
            if ended:
                raise KeyboardInterrupt

        return write(
            subject.model,
            target,
            prepared.test_x[:2],
            to=to,
            batches=TestImages(prepared, batch_size),
            calibration=read,
            recalibrate=recalibrate,
            precision=precision,
            classes=read.classes,
            normalization=_normalization(prepared),
            recipe=recipe,
            progress=progress,
        )


@dataclass(frozen=True)
class TestImages:
    """All of them in batches, in their order, as often as they are asked for."""

    prepared: Prepared
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.prepared.test_y) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.prepared.test_y), self.batch_size):
            rows = slice(first, first + self.batch_size)
            yield self.prepared.test_x[rows], self.prepared.test_y[rows]


def _normalization(prepared: Prepared) -> Normalization:
    from spiritlevel.export import Normalization

    return Normalization(
        mean=prepared.mean,
        std=prepared.divisor,
        size=prepared.size,
        channels="RGB" if prepared.channels == 3 else "grey",
    )


def _tell(subject: Subject, weights: Path | str, read: Images, *fed: bool) -> None:
    tell(say("terminal.export.model", name=subject.spec, weights=weights))
    test = len(read.prepared.test_y)
    told = say("terminal.export.fed", name=read.name, test=test)
    names = ("statistics", "ranges")
    used = [
        say(f"terminal.export.{name}") for name, is_used in zip(names, fed, strict=True) if is_used
    ]
    if used:
        told = say("terminal.export.fed_training", told=told, fed=read.fed, used_for=listed(used))
    tell(told)


def _print(report: ExportReport, as_json: bool) -> None:
    """On a terminal the verdicts have colours; elsewhere it is plain text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if as_json:
        print(json.dumps(report.to_json(), indent=2))
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        print(printable(str(report)))
        return
    head, *rows = report.cells()
    verdicts = [
        Text(cells[-1], "green" if row.ok else "bold red")
        for cells, row in zip(rows, report.rows, strict=True)
    ]
    console.print(Text(printable(report.title()), "bold"))
    if console.width >= _WIDE:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in head:
            table.add_column(name)
        for cells, verdict in zip(rows, verdicts, strict=True):
            table.add_row(*cells[:-1], verdict)
        console.print(table)
    else:
        for cells, verdict in zip(rows, verdicts, strict=True):
            block = Table.grid(padding=(0, 2, 0, 0))
            for name, cell in zip(head[:-1], cells, strict=False):
                block.add_row(name, cell)
            block.add_row(head[-1], verdict)
            console.print(block, "")
    for line in report.lines():
        console.print(printable(line))
