"""`spiritlevel explain`: read the numbers, compute, print."""

from __future__ import annotations

import io
import json
import os.path
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spiritlevel import explain as arithmetic
from spiritlevel.catalogue import say
from spiritlevel.errors import UsageError
from spiritlevel.explain import (
    BatchExplanation,
    Exact,
    Explanation,
    Normalized,
    RoundedEarly,
    decimal,
    exact,
    readable,
    root,
    rounded,
)

__all__ = ["CONTEXT", "explain"]

CONTEXT = {"ignore_unknown_options": True}  # or -1 would be taken for an option
MAX_BYTES = 1_000_000  # of text: 10,000 numbers of 100 characters
NUMBER_LIKE = re.compile(r"$|[-+]?(\.?\d|inf|nan)", re.IGNORECASE)
NPY_MAGIC = b"\x93NUMPY"
HEAD, TAIL = 8, 4  # rows of a table that is longer than both together
INDENT = 3
WIDEST = 80  # for prose in a wide terminal
PIPE_WIDTH = 100_000  # where nothing may wrap


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # √ in any locale
    if as_json:
        print(json.dumps(arithmetic.to_json(result), indent=2, ensure_ascii=False))
    elif isinstance(result, Explanation):
        _print_numbers(_Page(), result)
    else:
        _print_batch(_Page(), result)


# ---- reading -------------------------------------------------------------------------------------


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


# ---- printing ------------------------------------------------------------------------------------


class _Page:
    """Steps, prose, formulas and tables; wrapped in a terminal, one line each in a pipe."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.in_terminal = self.console.is_terminal
        if not self.in_terminal:
            self.console = Console(highlight=False, markup=False, emoji=False, width=PIPE_WIDTH)
        self.steps = 0

    def title(self, text: str) -> None:
        self.console.print(text, style="bold")

    def step(self, text: str) -> None:
        """A numbered heading."""
        self.steps += 1
        self.gap()
        self.console.print(Text.assemble((f"{self.steps:<{INDENT}}", "cyan"), (text, "bold")))

    def gap(self) -> None:
        self.console.print()

    def aside(self, text: str) -> None:
        """A heading without a number."""
        self.gap()
        self.console.print(" " * INDENT + text, style="bold")

    def prose(self, text: str, hanging: str = "") -> None:
        width = min(self.console.width, WIDEST) - INDENT if self.in_terminal else PIPE_WIDTH
        lines = textwrap.wrap(
            text, max(width, 20), subsequent_indent=hanging, break_on_hyphens=False
        )
        for line in lines:
            self.console.print(" " * INDENT + line, soft_wrap=True)

    def formula(self, text: str) -> None:
        self.console.print(" " * INDENT + text, soft_wrap=True)

    def item(self, text: str) -> None:
        """A paragraph that begins with a dash."""
        self.prose(f"- {text}", hanging="  ")

    def table(
        self, columns: Sequence[str], count: int, row: Callable[[int], Sequence[str]]
    ) -> None:
        """row(0) to row(count - 1), the middle left out if they are many; columns by their key."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        for name in columns:
            justify: Literal["left", "right"] = "left" if name == "values" else "right"
            table.add_column(say(f"explain.column_{name}"), justify=justify, overflow="fold")
        more = count - HEAD - TAIL
        for i in range(count) if more <= 0 else range(HEAD):
            table.add_row(*row(i))
        if more > 0:
            table.add_row(
                say("explain.more", count=f"{more:,}"), *["..."] * (len(columns) - 1), style="dim"
            )
            for i in range(count - TAIL, count):
                table.add_row(*row(i))
        self.console.print(Padding(table, (0, 0, 0, INDENT), expand=False))


def _cell(number: Exact) -> str:
    return exact(number) or readable(number)


def _equals(number: Exact) -> str:
    """= 3, or = 8/3 ≈ 2.6667, or ≈ 2.6667 where the exact number is too long."""
    text = exact(number)
    if text is None:
        return f"≈ {readable(number)}"
    return f"= {text} ≈ {readable(number)}" if "/" in text or "√" in text else f"= {text}"


def _near_one(number: Fraction) -> str:
    """1, or 1 - 3.7e-6 where decimals would hide the difference, or 1.0037."""
    off = abs(1 - number)
    if not 0 < off < Fraction("0.0005"):
        return _cell(number) if not off else readable(number)
    return f"1 {'-' if number < 1 else '+'} {_short(off)}"


def _short(number: Fraction) -> str:
    """With two digits: 0.00019, 3.7e-6."""
    return _setting(float(f"{float(number):.2g}"))


def _sum(numbers: Sequence[Fraction]) -> str:
    """(1 + 3 + 5), or the sum alone where the terms would not fit on a line."""
    terms = f"({' + '.join(map(_cell, numbers[: HEAD + TAIL]))})".replace("+ -", "- ")
    fits = 1 < len(numbers) <= HEAD + TAIL and len(terms) <= 48
    return terms if fits else _cell(sum(numbers, Fraction(0)))


def _setting(number: Fraction | float) -> str:
    return f"{float(number):.10g}".replace("e-0", "e-")


def _times(parts: Iterable[object]) -> str:
    return " x ".join(map(str, parts))


def _scales(told: Explanation) -> bool:
    return told.gamma != 1 or told.beta != 0


def _scaled(what: str, gamma: Fraction, beta: Fraction) -> str:
    """2 * what + 1, less what gamma = 1 and beta = 0 would not change."""
    shift = f" {'-' if beta < 0 else '+'} {_cell(abs(beta))}" if beta else ""
    return f"{_cell(gamma)} * {what}{shift}" if gamma != 1 else what + shift


def _print_numbers(page: _Page, told: Explanation) -> None:
    count = len(told.values)
    page.title(say("explain.title", count=f"{count:,}") if count > 1 else say("explain.title_one"))
    page.step(say("explain.mean"))
    page.formula(f"mean = {_sum(told.values)} / {count} {_equals(told.mean)}")
    page.step(say("explain.differences"))
    columns = told.values, told.differences, told.squares
    page.table(
        ("x", "difference", "square"), count, lambda i: [_cell(column[i]) for column in columns]
    )
    page.step(say("explain.variance"))
    page.formula(f"variance = {_sum(told.squares)} / {count} {_equals(told.variance)}")
    page.step(say("explain.deviation_eps" if told.eps else "explain.deviation"))
    under = f"(variance + {_setting(told.eps)})" if told.eps else "variance"
    page.formula(f"deviation = √{under} {_equals(told.deviation)}")
    page.step(say("explain.normalized"))
    if told.normalized:
        _print_normalized(page, told, told.normalized)
    else:
        page.prose(say("explain.constant", eps=_setting(arithmetic.TORCH_EPS)))
    _print_layer(page, told)


def _print_normalized(page: _Page, told: Explanation, normalized: Normalized) -> None:
    _print_results(page, "x", told.values, normalized.results)
    check = "check_eps" if told.eps else "check"
    check = check if told.variance else "check_constant"
    values = {"mean": _cell(normalized.mean), "variance": _near_one(normalized.variance)}
    page.prose(say(f"explain.{check}", **values))
    if _scales(told):
        page.step(say("explain.scale"))
        page.formula(f"y = {_scaled('normalized', told.gamma, told.beta)}")
        _print_results(page, "normalized", normalized.results, normalized.outputs)
        variance = _cell(told.gamma**2 * normalized.variance)
        page.prose(say("explain.check_scale", mean=_cell(told.beta), variance=variance))
    if normalized.rounded_early:
        _print_rounding(page, told, normalized, normalized.rounded_early)


def _print_results(
    page: _Page, name: str, given: Sequence[Exact], results: Sequence[Exact]
) -> None:
    told = [exact(result) or "" for result in results]
    columns = (name, "exact", "rounded") if any(told) else (name, "rounded")

    def row(i: int) -> list[str]:
        return [_cell(given[i]), *([told[i]] if any(told) else []), rounded(results[i])]

    page.table(columns, len(results), row)


def _print_rounding(
    page: _Page, told: Explanation, normalized: Normalized, early: RoundedEarly
) -> None:
    values = {
        "difference": _cell(early.difference),
        "deviation": _cell(told.deviation),
        "result": rounded(early.result),
        "late": rounded(early.result, 2),
        "deviation_early": rounded(early.deviation, 2),
        "result_early": rounded(early.result_early),
        "early": rounded(early.result_early, 2),
        "variance_early": _near_one(early.variance),
        "variance": _near_one(normalized.variance),
    }
    page.aside(say("explain.rounding", **values))
    page.prose(say("explain.rounding_text", **values))


def _print_layer(page: _Page, told: Explanation) -> None:
    page.aside(say("explain.layer"))
    if not _scales(told):
        page.item(say("explain.layer_scale"))
    if told.variance and not told.eps:
        _print_torch_eps(page, told.variance_with_torch_eps)
    if told.unbiased_variance is None or told.running_variance is None:
        page.item(say("explain.layer_running_one"))
        return
    new = told.momentum
    page.item(say("explain.layer_running", momentum=_cell(new)))
    below = len(told.values) - 1
    page.formula(
        f"  unbiased variance = {_sum(told.squares)} / {below} {_equals(told.unbiased_variance)}"
    )
    for name, start, batch, result in (
        ("mean    ", 0, told.mean, told.running_mean),
        ("variance", 1, told.unbiased_variance, told.running_variance),
    ):
        terms = f"{_cell(1 - new)} * {start} + {_cell(new)} * {_cell(batch)}"
        page.formula(f"  running {name}  = {terms} {_equals(result)}")


def _print_torch_eps(page: _Page, variance: Fraction) -> None:
    less = 100 * (1 - Fraction(decimal(root(variance))))
    key = "explain.torch_eps" if less < 1 else "explain.torch_eps_large"
    values = {"percent": _short(less), "variance": readable(variance)}
    page.item(say(key, eps=_setting(arithmetic.TORCH_EPS), **values))


def _print_batch(page: _Page, told: BatchExplanation) -> None:
    page.title(say("explain.title_array", shape=_times(told.shape), axes=_times(told.axes)))
    _print_together(page, told)
    channels = told.channels
    page.step(say("explain.statistics"))
    page.prose(say("explain.statistics_text", count=f"{told.count:,}"))
    page.table(
        ("channel", "mean", "biased", "unbiased"),
        len(channels),
        lambda c: _row(c, channels[c].mean, channels[c].variance, channels[c].unbiased_variance),
    )
    page.step(say("explain.normalized_array"))
    page.formula(f"(x - mean) / √(variance + {_setting(told.eps)})")

    def normalized(c: int) -> list[str]:
        mean, variance = channels[c].normalized_mean, channels[c].normalized_variance
        return _row(c, mean and round(mean, 12), variance)  # 1e-17 is the float's own rounding

    page.table(("channel", "mean", "variance"), len(channels), normalized)
    undefined = any(channel.normalized_mean is None for channel in channels)
    page.prose(say("explain.constant_array" if undefined else "explain.check_array"))
    page.step(say("explain.running"))
    if told.running:
        _print_running(page, told)
    else:
        page.prose(say("explain.running_refused"))


def _print_together(page: _Page, told: BatchExplanation) -> None:
    page.step(say("explain.together"))
    axes = told.axes.replace("C", "")
    sizes = [size for axis, size in enumerate(told.shape) if axis != 1]
    product = f"{_times(sizes)} = {told.count:,}" if len(sizes) > 1 else f"{told.count:,}"
    over = f"{', '.join(axes[:-1])} and {axes[-1]}" if len(axes) > 1 else axes
    page.prose(
        say("explain.together_text", axes=over, channels=f"{len(told.channels):,}", product=product)
    )
    listed = [[f"{value:g}" for value in channel.values] for channel in told.channels]
    if listed[0]:
        width = max(len(word) for words in listed for word in words)
        page.table(
            ("channel", "values"),
            len(listed),
            lambda c: [str(c), "  ".join(f"{word:>{width}}" for word in listed[c])],
        )


def _print_running(page: _Page, told: BatchExplanation) -> None:
    values = {"momentum": _setting(told.momentum), "value": f"{told.first_value:g}"}
    page.prose(say("explain.running_text", **values))
    page.formula("running = (1 - momentum) * running + momentum * batch")
    result = f"(x - running mean) / √(running variance + {_setting(told.eps)})"
    page.formula(f"eval()  = {_scaled(result, Fraction(told.gamma), Fraction(told.beta))}")
    steps, train = told.running, told.train_output
    page.table(
        ("step", "running_mean", "running_variance", "eval", "train"),
        len(steps),
        lambda i: _row(
            say("explain.at_last") if steps[i].step is None else steps[i].step,
            steps[i].running_mean,
            steps[i].running_variance,
            steps[i].eval_output,
            train,
        ),
    )
    page.gap()
    page.item(_settling(told))
    if told.momentum and _row("", train) != _row("", steps[-1].eval_output):
        page.item(say("explain.settles_short", count=told.count, count_less=told.count - 1))
    page.item(say("explain.running_moral"))


def _settling(told: BatchExplanation) -> str:
    if told.momentum == 0:
        return say("explain.settles_never")
    if told.running[-1].eval_output is None:
        return say("explain.settles_nowhere")
    values = {"percent": f"{100 * arithmetic.SETTLED:g}", "most": f"{arithmetic.MAX_STEPS:,}"}
    if told.steps_to_settle is None:
        return say("explain.settles_late", **values)
    if told.steps_to_settle == 0:
        return say("explain.settles_at_once", **values)
    return say("explain.settles", steps=f"{told.steps_to_settle:,}", **values)


def _row(name: object, *numbers: float | None) -> list[str]:
    # 12 digits: 0.1 that a float holds as 0.0999... is still read as 0.1000.
    cells = ("0/0" if x is None else readable(float(f"{x:.12g}")) for x in numbers)
    return [str(name), *cells]
