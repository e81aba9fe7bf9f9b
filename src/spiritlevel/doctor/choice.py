"""Which rules are asked, by ids and the beginnings of ids, as `SL203` and `SL3`."""

from __future__ import annotations

from collections.abc import Iterable

from spiritlevel.doctor.rule import RULES, Rule
from spiritlevel.errors import UsageError, did_you_mean

__all__ = ["chosen", "known"]


def chosen(select: str | Iterable[str] = (), ignore: str | Iterable[str] = ()) -> list[Rule]:
    """The rules that `select` names (none: all) and `ignore` does not, in the order of their ids.

    Where both name a rule, the longer name counts: `select="SL203", ignore="SL2"` asks SL203.
    Raises UsageError for a name that no rule begins with, and where none is left.
    """
    wanted, unwanted = known("select", select), known("ignore", ignore)
    left = [
        rule
        for id, rule in sorted(RULES.items())
        if _longest(id, wanted or [""]) > _longest(id, unwanted)
    ]
    if not left:
        raise UsageError(
            f"got select={select!r} and ignore={ignore!r}, which leave no rule to ask; wanted at "
            "least one"
        )
    return left


def _longest(id: str, beginnings: list[str]) -> int:
    return max((len(each) for each in beginnings if id.startswith(each)), default=-1)


def known(what: str, names: str | Iterable[str]) -> list[str]:
    """`names`, of which a str may hold several with commas between. Raises UsageError."""
    if not isinstance(names, Iterable):
        raise UsageError(f"got {what}={names!r}; wanted ids of rules, as SL203 or ['SL2', 'SL301']")
    parts = names.split(",") if isinstance(names, str) else list(names)
    found = []
    for part in parts:
        name = part.strip().upper() if isinstance(part, str) else ""
        if not name or not any(id.startswith(name) for id in RULES):
            raise UsageError(
                f"got {part!r} in {what}; wanted the id of a rule, as SL203, or its beginning, as "
                f"SL2.{did_you_mean(name, RULES)} `spiritlevel check --list-rules` lists them"
            )
        found.append(name)
    return found
