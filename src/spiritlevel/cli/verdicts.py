"""What a run found, as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spiritlevel.catalogue import say
from spiritlevel.cli.lines import UNBROKEN, printable

if TYPE_CHECKING:
    from spiritlevel.study import Study

__all__ = ["print_verdicts"]


def print_verdicts(found: Study) -> None:
    """Claim by claim, and network by network beneath; then the four worked examples.

    On a terminal words wrap at its width; in a pipe or a file no line is broken.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from spiritlevel.study.table import HEADS, verdict_rows

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in HEADS:
        table.add_column(say(f"terminal.{name}"), overflow="fold")
    rows = list(verdict_rows(found.verdicts))
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        title = Text.assemble(row.title, (f"\n{row.quantity}", "dim"))
        if not row.quantity:
            title = Text(printable(f"  {row.title}"))
        status = Text(f"{row.mark} {row.verdict}", _COLOURS[row.status])
        table.add_row(title, status, row.figure, row.interval)
        if after is None or after.quantity:
            table.add_row()  # each claim stands by itself
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNBROKEN
    console.print()
    console.print(table)
    for line in found.examples:
        console.print(printable(line), markup=False)
    console.print()


_COLOURS = {
    "supported": "green",
    "partly": "yellow",
    "not supported": "red",
    "inconclusive": "dim",
}
