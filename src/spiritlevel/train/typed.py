"""Fields of a dataclass from a file or a user, in the types that the dataclass names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from spiritlevel.errors import UsageError, did_you_mean

__all__ = ["refuse_unknown", "type_fields"]

_IN_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a name",
    "tuple[float, ...]": "a list of numbers",
}


def _typed(kind: str, value: Any, refused: Callable[[str], UsageError]) -> Any:
    """The value as a `kind`, of `_IN_WORDS`; a whole number is a number too.

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
            return tuple(_typed("float", item, refused) for item in value)
    raise refused(_IN_WORDS[kind])


def type_fields(
    made: Any, kinds: Mapping[str, str], refusal: Callable[[str, Any, str], UsageError]
) -> None:
    """The fields of a frozen dataclass, given as the user has them, become of their `kinds`.

    Raises `refusal(field, value, wanted)`.
    """
    for name, kind in kinds.items():
        value = getattr(made, name)
        object.__setattr__(made, name, _typed(kind, value, partial(refusal, name, value)))


def refuse_unknown(names: Iterable[object], fields: Sequence[str], what: str) -> None:
    """Raises UsageError for the first of `names` that is no field of `what`."""
    for name in names:
        if name not in fields:
            hint = did_you_mean(name, fields, cutoff=0.5)
            raise UsageError(
                f"got {name!r} in {what}, which has no such field.{hint} "
                f"Its fields: {', '.join(fields)}"
            )
