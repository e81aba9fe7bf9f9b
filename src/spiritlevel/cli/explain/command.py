"""The command: read the numbers, compute, print."""

from __future__ import annotations

import json
import os.path
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from numpy.typing import NDArray

from spiritlevel import explain as arithmetic
from spiritlevel.cli.explain.arrays import print_batch
from spiritlevel.cli.explain.numbers import print_numbers
from spiritlevel.cli.explain.page import Page
from spiritlevel.errors import UsageError
from spiritlevel.explain import BatchExplanation, Explanation

__all__ = ["CONTEXT", "explain"]

CONTEXT = {"ignore_unknown_options": True}  # or -1 would be taken for an option
MAX_BYTES = 1_000_000  # of text: 10,000 numbers of 100 characters
NUMBER_LIKE = re.compile(r"$|[-+]?(\.?\d|inf|nan)", re.IGNORECASE)
NPY_MAGIC = b"\x93NUMPY"


def explain(
    context: typer.Context,
    numbers: Annotated[
        list[str] | None,
        typer.Argument(
            show_default=False,
            help="Numbers; or a file of them, or a .npy array, N x C (x H x W); or - for a pipe.",
        ),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Added to the variance; unless given, 0 for numbers, 1e-5 for an array.",
        ),
    ] = None,
    gamma: Annotated[
        str, typer.Option(metavar="NUMBER", help="Multiplies each normalized value.")
    ] = "1",
    beta: Annotated[
        str, typer.Option(metavar="NUMBER", help="Added to each normalized value.")
    ] = "0",
    momentum: Annotated[
        str, typer.Option(metavar="NUMBER", help="Weight of a batch in the running average.")
    ] = "0.1",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with exact fractions.")
    ] = False,
) -> None:
    """Batch normalization step by step, exact and rounded: spiritlevel explain 1 3 5"""
    words = numbers or []
    _refuse_unknown_options(context, words)
    given_settings = {"eps": eps, "gamma": gamma, "beta": beta, "momentum": momentum}
    settings = {
        name: arithmetic.parse_number(text, f"for --{name}")
        for name, text in given_settings.items()
        if text is not None
    }
    given = _read(words)
    result: Explanation | BatchExplanation
    if isinstance(given, tuple):
        result = arithmetic.explain_numbers(given, **settings)
    else:
        in_float = {name: float(value) for name, value in settings.items()}
        result = arithmetic.explain_array(given, **in_float)
    if as_json:
        print(json.dumps(arithmetic.to_json(result), indent=2))
    elif isinstance(result, Explanation):
        print_numbers(Page(), result)
    else:
        print_batch(Page(), result)


def _refuse_unknown_options(context: typer.Context, words: Sequence[str]) -> None:
    known = [
        name for parameter in context.command.params for name in parameter.opts if name[:2] == "--"
    ]
    for word in words:
        if re.match(r"--|-(?!inf|nan)[a-z]", word, re.IGNORECASE):
            raise UsageError(
                f"got the option {word.split('=')[0]}, which explain does not have; "
                f"it has {', '.join(known)}"
            )


def _read(words: Sequence[str]) -> tuple[Fraction, ...] | NDArray[Any]:
    """Numbers from the command line, one file or a pipe; a number wins over a file of that name."""
    piped = sys.stdin is not None and not sys.stdin.isatty()
    if words == ["-"] or (not words and piped):
        return _numbers(sys.stdin.buffer.read(MAX_BYTES + 1), "the pipe")
    try:
        return arithmetic.parse_numbers(" ".join(words))
    except UsageError:
        if len(words) != 1 or (NUMBER_LIKE.match(words[0]) and not os.path.exists(words[0])):
            raise
    return _read_file(Path(words[0]))


def _read_file(path: Path) -> tuple[Fraction, ...] | NDArray[Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"got {str(path)!r}, wanted numbers such as 1 3 5, or a file of them: {error.strerror}"
        ) from None
    if path.suffix == ".npy" or content.startswith(NPY_MAGIC):
        return arithmetic.load_array(path)
    return _numbers(content, str(path))


def _numbers(content: bytes, source: str) -> tuple[Fraction, ...]:
    if len(content) > MAX_BYTES:
        raise UsageError(
            f"got more than {MAX_BYTES:,} bytes from {source}, "
            f"wanted at most {arithmetic.MAX_NUMBERS:,} numbers; save more as a .npy array of N x C"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"got binary data from {source}, wanted numbers as text, or a .npy file")
    return arithmetic.parse_numbers(text)
