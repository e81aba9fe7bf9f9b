"""Fields of a dataclass from a file or a user, in the types that the dataclass names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from spiritlevel.errors import UsageError

__all__ = ["refuse_unknown", "typed"]

_IN_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a name",
    "tuple[float, ...]": "a list of numbers",
}


def typed(kind: str, value: Any, refused: Callable[[str], UsageError]) -> Any:
    """The value as a `kind`, of those above; a whole number is a number too.

    Raises `refused(wanted)`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "float" if number:
            return float(value)
        case "int" if isinstance(value, int) and number:
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "str" if isinstance(value, str):
            return value
        case "tuple[float, ...]" if isinstance(value, list | tuple):
            return tuple(typed("float", item, refused) for item in value)
    raise refused(_IN_WORDS[kind])


def refuse_unknown(names: Iterable[object], fields: Sequence[str], what: str) -> None:
    """Raises UsageError for the first of `names` that is no field of `what`."""
    for name in names:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(
                f"got {name!r} in {what}, which has no such field. {hint}"
                f"Its fields: {', '.join(fields)}"
            )
