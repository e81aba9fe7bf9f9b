"""The page: the story put into the template, with everything it needs inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritlevel.catalogue import say
from spiritlevel.errors import require
from spiritlevel.files import write_whole
from spiritlevel.report import figures, heatmap, shell
from spiritlevel.report.check import check
from spiritlevel.report.story import Figure, Story
from spiritlevel.report.summary import chart_name, summary
from spiritlevel.report.thin import fitted

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["LIMIT", "render", "write"]

LIMIT = 6_000_000
"""Bytes of a page at most: what a mail takes, and a phone opens."""

# In this order they are one script; the last one starts it all.
SCRIPTS = ("charts", "tables", "figures", "widget", "records", "live", "page")


def render(story: Mapping[str, Any]) -> str:
    """The whole page as HTML that asks nothing of any network, of at most `LIMIT` bytes.

    Figures too large for that lose points, and say so. Raises UsageError if a piece of the story
    is missing or unknown or the page too large even so, MissingExtra without plotly.
    """
    whole = check(story)
    environment = _environment()
    every = [one for part in (*whole["examples"], *whole["claims"]) for one in part["figures"]]
    # Without the data, and with the note of each figure that has lost points.
    rest = _fill(environment, whole, {figure["id"]: _drawn(figure, "", 2) for figure in every})
    room = LIMIT - len(rest.encode("utf-8", "replace"))
    written, steps = fitted(every, _figure_json, room)
    drawn = {
        figure["id"]: _drawn(figure, written[figure["id"]], steps[figure["id"]]) for figure in every
    }
    return _fill(environment, whole, drawn)


def write(story: Mapping[str, Any], path: Path) -> Path:
    """Render to `path`, which holds the old page or the whole new one at every moment."""
    write_whole(path, render(story))
    return path


def _fill(environment: Environment, story: Story, drawn: Mapping[str, Any]) -> str:
    script, plotly = shell.script(SCRIPTS), shell.plotly()
    page = environment.get_template("page.html.j2").render(
        story=story,
        drawn=drawn,
        css=shell.styles("page"),
        script=script,
        plotly=plotly["deflated"],
        policy=shell.policy([plotly["hash"], shell.hash_of(script)]),
        words=shell.texts("reader"),
        widget={"texts": shell.texts("widget"), "bell": figures.bell()},
    )
    # Above the page itself the template has only macros.
    return page.lstrip()


def _environment() -> Environment:
    return shell.environment(
        {
            "legend": figures.legend,
            "summary": summary,
            "chart_name": chart_name,
            "duration": _duration,
            "ranges": _ranges,
        }
    )


def _drawn(figure: Figure, data: str, step: int) -> dict[str, Any]:
    """What the template needs of a figure beside the story: `data`, and each panel's height."""
    html: type[Markup] = require("markupsafe", extra="study").Markup
    panels: list[Any] = list(zip(*figures.frames_of(figure), strict=True))
    return {
        "json": html(data),
        "step": step,
        "heights": [figures.height(one) for one in panels],
        "colour_keys": [
            heatmap.colour_key(one) if one[0]["kind"] == "heatmap" else None for one in panels
        ],
    }


def _figure_json(figure: Figure) -> str:
    """JSON that stays inside its element whatever it holds."""
    dumps = require("jinja2.utils", extra="study").htmlsafe_json_dumps
    compact = {"allow_nan": False, "separators": (",", ":")}
    return str(dumps(figures.drawing(figure), json.dumps, **compact))


def _ranges(indices: Sequence[int]) -> str:
    """Such as 0-2,7 for 0, 1, 2 and 7."""
    found: list[list[int]] = []
    for index in sorted(set(indices)):
        if found and index == found[-1][-1] + 1:
            found[-1] = [found[-1][0], index]
        else:
            found.append([index])
    return ",".join("-".join(map(str, ends)) for ends in found)


def _duration(seconds: float) -> str:
    """Such as 42 s, 4 min 31 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return say("page.seconds", seconds=whole)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return say("page.minutes", minutes=minutes, seconds=rest)
    return say("page.hours", hours=minutes // 60, minutes=minutes % 60)
