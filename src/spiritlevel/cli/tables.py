"""A table on stdout: as it is where it fits, one block a row on a narrow terminal, text elsewhere.

What stands in it may be anyone's: nothing of it steers a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spiritlevel.cli.lines import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "one_line", "print_table"]

_BETWEEN = 2
"""Columns between two cells."""


def console() -> Console:
    """stdout, without markup and guessed colours."""
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=False)


def one_line(text: str, most: int | None = 40) -> str:
    """A name of anyone's, in at most so many columns."""
    from rich.cells import cell_len, set_cell_size

    text = printable(text).replace("\n", "\\n")
    return (
        text
        if most is None or cell_len(text) <= most
        else f"{set_cell_size(text, most - 3).rstrip()}..."
    )


def print_table(screen: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    from rich.cells import cell_len
    from rich.table import Table

    columns = zip(head, *rows, strict=True)
    widths = [max(map(cell_len, column)) for column in columns]
    if not screen.is_terminal:
        for row in (head, *rows):
            padded = (
                f"{cell}{' ' * (width - cell_len(cell))}"
                if i == 0
                else f"{' ' * (width - cell_len(cell))}{cell}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print((" " * _BETWEEN).join(padded).rstrip())
    elif sum(widths) + _BETWEEN * (len(widths) - 1) <= screen.width:
        table = Table(box=None, pad_edge=False, padding=(0, _BETWEEN, 0, 0))
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        screen.print(table)
    else:
        for row in rows:
            block = Table.grid(padding=(0, _BETWEEN, 0, 0))
            block.add_column()
            block.add_column(overflow="fold")
            for name, cell in zip(head, row, strict=True):
                block.add_row(name, cell)
            screen.print(block, "")
