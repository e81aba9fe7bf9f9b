"""A page of steps for a terminal or a pipe, and how numbers stand on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spiritlevel.catalogue import say
from spiritlevel.cli.lines import wrapped
from spiritlevel.explain import Exact, exact, readable

__all__ = [
    "Page",
    "cell",
    "equals",
    "listed_sum",
    "near_one",
    "scaled",
    "setting",
    "short",
    "times",
]

HEAD, TAIL = 8, 4  # rows of a table that is longer than both together
INDENT = 3
WIDEST = 80  # for prose in a wide terminal
PIPE_WIDTH = 100_000  # where nothing may wrap


class Page:
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
        for line in wrapped(text, max(width, 20), hanging):
            self.console.print(" " * INDENT + line, soft_wrap=True)

    def formula(self, text: str) -> None:
        self.console.print(" " * INDENT + text, soft_wrap=True)

    def formulas(self, told: Mapping[str, str], indent: int = 0) -> None:
        """Name = formula, the equals signs beneath each other."""
        width = max(map(cell_len, told))
        for name, text in told.items():
            self.formula(f"{' ' * indent}{set_cell_size(name, width)} = {text}")

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


def cell(number: Exact) -> str:
    return exact(number) or readable(number)


def equals(number: Exact) -> str:
    """= 3, or = 8/3 ≈ 2.6667, or ≈ 2.6667 where the exact number is too long."""
    text = exact(number)
    if text is None:
        return f"≈ {readable(number)}"
    return f"= {text} ≈ {readable(number)}" if "/" in text or "√" in text else f"= {text}"


def near_one(number: Fraction) -> str:
    """1, or 1 - 3.7e-6 where decimals would hide the difference, or 1.0037."""
    off = abs(1 - number)
    if not 0 < off < Fraction("0.0005"):
        return cell(number) if not off else readable(number)
    return f"1 {'-' if number < 1 else '+'} {short(off)}"


def short(number: Fraction) -> str:
    """With two digits: 0.00019, 3.7e-6."""
    return setting(float(f"{float(number):.2g}"))


def listed_sum(numbers: Sequence[Fraction]) -> str:
    """(1 + 3 + 5), or the sum alone where the terms would not fit on a line."""
    terms = f"({' + '.join(map(cell, numbers[: HEAD + TAIL]))})".replace("+ -", "- ")
    fits = 1 < len(numbers) <= HEAD + TAIL and len(terms) <= 48
    return terms if fits else cell(sum(numbers, Fraction(0)))


def setting(number: Fraction | float) -> str:
    return f"{float(number):.10g}".replace("e-0", "e-")


def times(parts: Iterable[object]) -> str:
    return " x ".join(map(str, parts))


def scaled(what: str, gamma: Fraction, beta: Fraction) -> str:
    """2 * what + 1, less what gamma = 1 and beta = 0 would not change."""
    shift = f" {'-' if beta < 0 else '+'} {cell(abs(beta))}" if beta else ""
    return f"{cell(gamma)} * {what}{shift}" if gamma != 1 else what + shift
