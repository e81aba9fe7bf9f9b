"""What a figure shows, in a line of words, for those who do not see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spiritlevel.catalogue import sentence
from spiritlevel.errors import require
from spiritlevel.report.lines import name_of
from spiritlevel.report.numbers import in_figures
from spiritlevel.report.story import Figure, Heatmap, Lines, Panel
from spiritlevel.report.words import plain, say

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["chart_name", "summary"]

# Of more series a sentence would only be a table that cannot be read.
MOST = 4


def summary(figure: Figure) -> Markup:
    """The figure's own summary; without one, where each of its first panels begins and ends."""
    if "summary" in figure:
        return say(figure["summary"])
    html: type[Markup] = require("markupsafe", extra="study").Markup
    return html(sentence("joints.sentences")).join(_in_words(panel) for panel in figure["panels"])


def chart_name(figure: Figure, panel: Panel) -> str:
    """The accessible name of one of the figure's charts."""
    title, name = plain(figure["title"]), plain(panel["title"])
    if "summary" in figure and figure.get("controls"):  # whose numbers change
        told = plain(figure["summary"])
        return _titled(title, told if title == name else _titled(name, told))
    told = _in_words(panel).striptags()
    return told if title == name else _titled(title, told)


def _titled(title: str, rest: str) -> str:
    return sentence("joints.title").format(title=title, rest=rest)


def _in_words(panel: Panel) -> Markup:
    return _map_in_words(panel) if panel["kind"] == "heatmap" else _lines_in_words(panel)


def _lines_in_words(panel: Lines) -> Markup:
    html: type[Markup] = require("markupsafe", extra="study").Markup
    found: dict[Markup, list[list[float]]] = {}
    for series in panel["series"]:
        if known := [value for value in series["y"] if value is not None]:
            found.setdefault(name_of(series), []).append(
                known if series["style"] != "dots" else sorted(known)
            )
    told = [_series_in_words(name, every) for name, every in found.items()]
    if not told:
        return say(["reader.shows_nothing", {"title": say(panel["title"])}])
    if (more := len(told) - MOST) > 0:
        told[MOST:] = [say(["reader.more", {"n": more}])]
    xs = [x for series in panel["series"] for x in series["x"]]
    values = {
        "title": say(panel["title"]),
        "series": html(sentence("joints.clauses")).join(told),
        "x": say(panel["x"]["label"]),
        "low": _number(min(xs)),
        "high": _number(max(xs)),
    }
    return say(["reader.shows_lines", values])


def _series_in_words(name: Markup, every: Sequence[Sequence[float]]) -> Markup:
    """From where to where a line goes; of several of one name, between what they all are."""
    if len(every) == 1:
        first, last = _number(every[0][0]), _number(every[0][-1])
        return say(["reader.line", {"name": name, "first": first, "last": last}])
    values = [value for one in every for value in one]
    ends = {"low": _number(min(values)), "high": _number(max(values))}
    return say(["reader.dots", {"name": name, **ends}])


def _map_in_words(panel: Heatmap) -> Markup:
    known = [value for row in panel["z"] for value in row if value is not None]
    title = say(panel["title"])
    if not known:
        return say(["reader.shows_nothing", {"title": title}])
    values = {
        "title": title,
        "colour": say(panel["colour"]["label"]),
        "low": _number(min(known)),
        "high": _number(max(known)),
        "rows": len(panel["rows"]),
        "columns": len(panel["columns"]),
    }
    return say(["reader.shows_map", values])


def _number(value: float) -> str:
    return in_figures(value, 3)
