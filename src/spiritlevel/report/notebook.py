"""What a notebook shows of an object: plain HTML, inline style, no script.

It takes the notebook's own colours, light or dark, and reads as well where the styles are taken
away, as a site does that shows notebooks of strangers. Whoever calls escapes: `Html` is markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

from spiritlevel.catalogue import say

__all__ = [
    "DIM",
    "Html",
    "band",
    "bar",
    "block",
    "cell",
    "code",
    "folded",
    "lines",
    "more",
    "table",
]

Html: TypeAlias = str
"""Markup, in which everything of a user's is escaped."""

DIM = "opacity:.75;font-size:90%"
_CELL = "padding:3px 18px 3px 6px;text-align:left;vertical-align:top"
_TABLE = "border-collapse:collapse;table-layout:auto;margin:4px 0"
_TRACK = "position:relative;width:9em;height:.8em;margin-top:.25em"
_BAND = "position:absolute;top:0;height:100%;background:currentColor"


def block(*parts: Html) -> Html:
    """One output. A table wider than the page scrolls by itself."""
    return f'<div style="overflow-x:auto">{"".join(parts)}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[Html]], caption: str = "") -> Html:
    """`heads` and `caption` are text, the rows are of `cell`s. Empty heads: none."""
    head = "".join(f'<th scope="col" style="{_CELL}">{escape(each)}</th>' for each in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    title = f'<caption style="text-align:left;{DIM}">{escape(caption)}</caption>' if caption else ""
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<table style="{_TABLE}">{title}{top}<tbody>{body}</tbody></table>'


def cell(html: Html, style: str = "") -> Html:
    return f'<td style="{_CELL};{style}">{html}</td>'


def code(text: str) -> Html:
    """A name of the user's; the path of a module breaks after its dots."""
    return f"<code>{escape(text).replace('.', '.<wbr>')}</code>"


def lines(texts: Iterable[str], style: str = "") -> Html:
    """Each text a line of its own."""
    inside = "".join(f"<div>{escape(text)}</div>" for text in texts)
    return f'<div style="{style}">{inside}</div>' if style and inside else inside


def folded(title: str, html: Html, style: str = "") -> Html:
    """Behind a line that opens it."""
    return f'<details style="{style}"><summary>{escape(title)}</summary>{html}</details>'


def bar(share: float) -> Html:
    """A share of its track, in percent."""
    return band(0.0, share, None)


def band(low: float, high: float, place: float | None) -> Html:
    """From `low` to `high`, with a mark at `place`; in percent of the track."""
    left, right = (min(max(end, 0.0), 100.0) for end in (low, high))
    mark = ""
    if place is not None:
        mark = f'<div style="{_BAND};width:3px;left:calc({place:.1f}% - 1px)"></div>'
    span = f"left:{left:.1f}%;width:{max(right - left, 0.5):.1f}%;opacity:.35"
    return (
        f'<div aria-hidden="true" style="{_TRACK}"><div style="{_BAND};{span}"></div>{mark}</div>'
    )


def more(many: int) -> str:
    """Of those that a table leaves out."""
    return say("notebook.more", n=f"{many:,}")
