"""Every sentence that a reader meets on the page or from `explain`, by key.

A language is one file, `catalogue_<language>.toml`. `[page]`, `[reader]`, `[claims]`, `[examples]`,
`[networks]`, `[labels]`, `[arms]`, `[probe_page]` and `[diagnosis_page]` go to a page and may carry
inline HTML; the report escapes what is filled in, never the sentence. `[explain]`, `[terminal]` and
`[notebook]` are plain text.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from spiritlevel.errors import UsageError

__all__ = ["keys", "say", "sentence"]


@cache
def _sentences(language: str) -> dict[str, str]:
    file = resources.files("spiritlevel") / f"catalogue_{language}.toml"
    if not file.is_file():
        raise UsageError(f"got language {language!r}, which has no catalogue; there is: en")
    return dict(_flatten(tomllib.loads(file.read_text(encoding="utf-8")), ""))


def _flatten(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value).strip()


def keys(language: str = "en") -> list[str]:
    """All keys of the catalogue, in its order."""
    return list(_sentences(language))


def sentence(key: str, language: str = "en") -> str:
    """The sentence behind `key`, with its `{placeholders}` unfilled. Raises KeyError."""
    return _sentences(language)[key]


def say(key: str, language: str = "en", **values: object) -> str:
    """The sentence behind `key`, filled in by `str.format`. Raises KeyError for an unknown key."""
    return sentence(key, language).format(**values)
