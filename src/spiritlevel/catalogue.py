"""Every sentence that a reader meets on the page or from `explain`, by key.

A language is one file, `catalogue_<language>.toml`. `[page]`, `[reader]`, `[claims]`, `[examples]`,
`[networks]`, `[labels]`, `[arms]`, `[probe_page]` and `[diagnosis_page]` go to a page and may carry
inline HTML; the report escapes what is filled in, never the sentence. `[explain]`, `[terminal]`,
`[notebook]`, `[diagnosis]` and `[needs]` are plain text. `[joints]` stand between pieces that the
code puts together.

What is spoken is English, unless the caller is inside `speaking("zh")`. Records hold no language:
what is drawn from them later is said in the language spoken then.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import resources
from typing import Any

from spiritlevel.errors import UsageError

__all__ = [
    "columns",
    "joined",
    "keys",
    "language_of",
    "languages",
    "listed",
    "say",
    "sentence",
    "speaking",
    "spoken",
]

_ENGLISH = "en"
_spoken = ContextVar("spiritlevel_language", default=_ENGLISH)


@cache
def languages() -> tuple[str, ...]:
    """Those that have a catalogue."""
    names = (file.name for file in resources.files("spiritlevel").iterdir())
    found = (name for name in names if name.startswith("catalogue_") and name.endswith(".toml"))
    return tuple(sorted(name[len("catalogue_") : -len(".toml")] for name in found))


def spoken() -> str:
    """The language of all that is said now."""
    return _spoken.get()


@contextmanager
def speaking(language: str | None) -> Iterator[None]:
    """What is said inside is said in this language; None changes nothing. Raises UsageError.

    Who says zh-CN or zh_CN means zh, as in a locale.
    """
    before = _spoken.set(_spoken.get() if language is None else _known(language))
    try:
        yield
    finally:
        _spoken.reset(before)


def language_of(environment: Mapping[str, str]) -> str:
    """The language that a locale asks for, as gettext reads it; English where it has none of ours.

    LC_ALL goes before LC_MESSAGES before LANG; in any locale but C the list in LANGUAGE before all.
    """
    names = (environment.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    locale = next(filter(None, names), "C")
    if _language(locale) in ("c", "posix"):
        return _ENGLISH
    wanted = [*environment.get("LANGUAGE", "").split(":"), locale]
    return next((one for one in map(_language, wanted) if one in languages()), _ENGLISH)


def _language(locale: str) -> str:
    """`zh` of zh_CN.UTF-8."""
    for sign in ".@_-":
        locale = locale.partition(sign)[0]
    return locale.lower()


def _known(language: str) -> str:
    if not isinstance(language, str):
        raise UsageError(
            f"got {type(language).__name__} as language; wanted one of: {', '.join(languages())}"
        )
    if (found := _language(language)) not in languages():
        raise UsageError(
            f"got language {language!r}, which has no catalogue; there is: {', '.join(languages())}"
        )
    return found


@cache
def _sentences(language: str) -> dict[str, str]:
    file = resources.files("spiritlevel") / f"catalogue_{_known(language)}.toml"
    return dict(_flatten(tomllib.loads(file.read_text(encoding="utf-8")), ""))


def _flatten(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


def keys(language: str | None = None) -> list[str]:
    """All keys of the catalogue, in its order."""
    return list(_sentences(language or spoken()))


def sentence(key: str, language: str | None = None) -> str:
    """The sentence behind `key`, with its `{placeholders}` unfilled. Raises KeyError."""
    return _sentences(language or spoken())[key]


def say(key: str, language: str | None = None, **values: object) -> str:
    """The sentence behind `key`, filled in by `str.format`. Raises KeyError for an unknown key."""
    return sentence(key, language).format(**values)


def joined(joint: str, parts: Sequence[str]) -> str:
    """The parts with one of `[joints]` between them: sentences, clauses or list."""
    return sentence(f"joints.{joint}").join(parts)


def listed(parts: Sequence[str], last: str = "last") -> str:
    """In one phrase: a, b and c; or, with `last` "either": a, b or c."""
    *most, end = parts
    return joined("list", most) + sentence(f"joints.{last}") + end if most else end


def columns(text: str) -> int:
    """How many a terminal needs for it: two for each Han character and its signs."""
    return len(text) + sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
