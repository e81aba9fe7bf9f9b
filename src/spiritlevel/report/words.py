"""A story's texts, said in HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from spiritlevel.catalogue import keys, sentence
from spiritlevel.errors import UsageError, require

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Text", "needed", "plain", "say"]

# A catalogue key, or [key, {placeholder: value}].
Text: TypeAlias = str | list[Any]


def say(text: Text) -> Markup:
    """The catalogue's sentence, whose own HTML stands and whose filled-in values are escaped.

    Raises UsageError for a key, or a placeholder's value, that is not there.
    """
    markup: type[Markup] = require("markupsafe", extra="study").Markup
    match text:
        case str(key):
            values: dict[str, Any] = {}
        case [str(key), dict(values)]:
            pass
        case _:
            raise UsageError(
                f"got {text!r} for a text, wanted a catalogue key or [key, {{values}}]"
            )
    try:
        found = sentence(key)
    except KeyError:
        raise UsageError(
            f"got the text {key!r}, which the catalogue does not have; add it there"
        ) from None
    try:
        return markup(found).format(**values)
    except (KeyError, IndexError) as error:
        raise UsageError(
            f"got the text {key!r} with values for {sorted(values)}, wanted one for {error}; "
            "give it where the story is built"
        ) from None


def plain(text: Text) -> str:
    """The same sentence without its HTML, for an attribute that a screen reader speaks."""
    return say(text).striptags()


def needed(told: str) -> str:
    """What a rule needs, which a record tells in English, in the language spoken."""
    known = {sentence(key, "en"): key for key in keys("en") if key.startswith("needs.")}
    return sentence(known[told]) if told in known else told
