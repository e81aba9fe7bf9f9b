"""What a check found, as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spiritlevel.catalogue import listed, say
from spiritlevel.cli.lines import UNBROKEN

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from spiritlevel.doctor.diagnosis import Diagnosis
    from spiritlevel.doctor.rule import Rule

__all__ = ["print_findings", "print_rule", "print_rules", "shown"]

COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_WIDEST = 110
"""Columns: beyond it a line of words is hard to follow."""


def print_findings(found: Diagnosis) -> None:
    """The gap first, then finding by finding.

    On a terminal words wrap at its width; in a pipe or a file no line is broken.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.width = min(console.width, _WIDEST)
        _print(found, console)
    else:
        print(shown(found), end="")


def shown(found: Diagnosis) -> str:
    """The same as text, for a file."""
    import io

    from rich.console import Console

    text = io.StringIO()
    _print(found, Console(file=text, width=UNBROKEN, highlight=False))
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _print(found: Diagnosis, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from spiritlevel.doctor.check import RULES

    if found.gap is not None:
        for line in found.gap.lines():
            console.print(Text(line))
        console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found.findings:
        left = Text.assemble(
            (say(f"diagnosis.{finding.severity}"), COLOURS[finding.severity]),
            "\n",
            (finding.rule, "dim"),
        )
        place = finding.module or say("terminal.check.whole")
        right = Text.assemble((place, "bold"), f"  {RULES[finding.rule].name}\n", finding.message)
        if finding.fix:
            right.append(f"\n{finding.fix}", "green")
        table.add_row(left, right)
    if found.findings:
        console.print(table)
        console.print()
    for note in found.notes:
        console.print(Text(note, "dim"))
    colour = COLOURS[found.worst] if found.worst else "green"
    console.print(Text(f"{found.model}: {found.summary()}", colour))


def print_rules() -> None:
    """Every rule, one a line."""
    from rich.table import Table
    from rich.text import Text

    from spiritlevel.doctor.check import RULES

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for column in ("id", "severity"):
        table.add_column(column, no_wrap=True)
    table.add_column(overflow="fold")
    console = _console()
    for id, rule in sorted(RULES.items()):
        needs = _needs(rule)
        told = Text.assemble(rule.name, f"\n{rule.summary}", (f" {needs}" if needs else "", "dim"))
        table.add_row(id, _severity(rule), told)
    console.print(table)


def print_rule(id: str) -> None:
    """What a rule says of itself. Raises UsageError."""
    from rich.text import Text

    from spiritlevel.doctor.check import RULES
    from spiritlevel.doctor.choice import known
    from spiritlevel.doctor.fixes import FIXES
    from spiritlevel.errors import UsageError

    (name,) = known("the command", [id])
    if name not in RULES:
        raise UsageError(
            f"got rule {id!r}, which begins several; wanted one, as "
            f"{next(each for each in sorted(RULES) if each.startswith(name))}"
        )
    rule, console = RULES[name], _console()
    console.print(Text.assemble((f"{rule.id} {rule.name}", "bold")))
    console.print(_severity(rule))
    console.print(Text(f"\n{rule.summary}"))
    for paragraph in rule.why.split("\n\n"):
        console.print(Text("\n" + " ".join(paragraph.split())))
    console.print()
    if rule.needs:
        console.print(Text(_needs(rule)))
    if rule.id in FIXES:
        console.print(Text(say("terminal.check.mechanical", what=FIXES[rule.id].what)))
    if rule.threads:
        console.print(Text(say("terminal.check.threads", threads=", ".join(rule.threads))))
    console.print(Text(say("terminal.check.rule_page", path=f"docs/rules/{rule.id}.md")))


def _severity(rule: Rule) -> Text:
    from rich.text import Text

    return Text(say(f"diagnosis.{rule.severity}"), COLOURS[rule.severity])


def _needs(rule: Rule) -> str:
    """All that it needs; empty for one that reads the model alone."""
    needs = [say(f"needs.{need}") for need in rule.needs]
    return say("terminal.check.needs", needs=listed(needs)) if needs else ""


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    console.width = min(console.width, _WIDEST) if console.is_terminal else UNBROKEN
    return console
