"""`spiritlevel models`: what each model holds and costs, and its published accuracy."""

from __future__ import annotations

import json
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spiritlevel.catalogue import say
from spiritlevel.cli import ended
from spiritlevel.cli.lines import UNBROKEN

if TYPE_CHECKING:
    from rich.table import Table

    from spiritlevel.models.table import Row

__all__ = ["models"]

_WIDE, _LEAST = 100, 78
"""Columns: where each row is one line, and what a row of two lines takes."""


def models(
    pattern: Annotated[str, typer.Argument(help="Names, as 'ghostnet*'.")] = "*",
    image_size: Annotated[
        int | None,
        typer.Option(help="Height and width of the image. (default: as published, 224 or 32)"),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="(default: as published, 1000 or 10)")
    ] = None,
    norm: Annotated[str, typer.Option(help="As in create_model: group:8, none ...")] = "batch",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """The models: parameters, multiply-adds without and with BN, its layers, accuracy."""
    from rich.console import Console

    from spiritlevel.cli.progress import Share
    from spiritlevel.models.published import CIFAR10, IMAGENET
    from spiritlevel.models.table import model_table

    with Share() as bar, warnings.catch_warnings():
        # How many groups are taken where 8 do not divide the channels changes no count.
        warnings.filterwarnings("ignore", message="norm '", category=UserWarning)

        def tell(share: float, what: str) -> None:
            bar.tell(share, what)
            if ended:
                raise KeyboardInterrupt

        rows = model_table(pattern, image_size, num_classes, norm, tell)
    for row in rows:
        if row.counts is None:
            print(say("terminal.models.refused", model=row.code, why=row.refused), file=sys.stderr)
    if as_json:
        print(json.dumps([row.to_json() for row in rows], indent=2))
        return
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _LEAST) if console.is_terminal else UNBROKEN
    shown = [row for row in rows if row.counts is not None]
    console.print(_table(shown, norm, " " if console.width >= _WIDE else "\n"))
    console.print()
    large, small = IMAGENET.image_size, CIFAR10.image_size
    sizes = image_size or say("terminal.models.sizes", large=large, small=small)
    console.print(say("terminal.models.how", size=sizes))
    if any(row.published.accuracies for row in rows):
        console.print(say("terminal.models.accuracies"))


def _table(rows: list[Row], norm: str, between: str) -> Table:
    """`between` stands before the options of a model, and before the table of a paper."""
    from rich.table import Table

    kind = "batch" if norm.partition(":")[0] == "batch" else "norm"
    numbers = ("parameters", "multiply_adds", f"with_{kind}", f"{kind}_layers", f"{kind}_elements")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("model", *numbers, "accuracy", "source"):
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        table.add_column(say(f"terminal.models.{name}"), justify=justify, no_wrap=True)
    for row in rows:
        accuracy, source = _published(row)
        name = between.join(part for part in (row.name, _options(row)) if part)
        table.add_row(name, *_numbers(row), accuracy, source.replace(" ", between, 1))
    return table


def _numbers(row: Row) -> tuple[str, ...]:
    counts = row.counts
    assert counts is not None
    return (
        f"{counts.parameters:,}",
        _millions(counts.multiply_adds),
        _millions(counts.multiply_adds_with_norms),
        str(counts.norm_layers),
        _millions(counts.norm_elements),
    )


def _published(row: Row) -> tuple[str, str]:
    """The accuracy that its paper gives, or whoever else does, and where."""
    if not row.published.accuracies:
        return "", ""
    first = row.published.accuracies[0]
    top5 = "" if first.top5 is None else f"/{first.top5:.1f}"
    return f"{first.top1:.1f}{top5}", first.source


def _options(row: Row) -> str:
    """What makes it of the model: s=2 d=3."""
    options = [f"{key}={value}" for key, value in row.published.options.items()]
    if row.published.deployed:
        options.append(say("terminal.models.as_deployed"))
    return " ".join(options)


def _millions(number: int) -> str:
    return f"{number / 1e6:,.2f}"
