"""The page: the story put into the template, with everything it needs inside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from spiritlevel.catalogue import keys, sentence
from spiritlevel.errors import require
from spiritlevel.files import write_whole
from spiritlevel.report import figures, heatmap
from spiritlevel.report.check import check
from spiritlevel.report.words import plain, say

__all__ = ["render", "write"]


def render(story: Mapping[str, Any]) -> str:
    """The whole page as HTML that asks nothing of any network.

    Raises UsageError if a piece of the story is missing or unknown, MissingExtra without plotly.
    """
    whole = check(story)
    jinja2 = require("jinja2", extra="study")
    scripts = [require("plotly.offline", extra="study").get_plotlyjs(), _file("page.js")]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "say": say,
        "plain": plain,
        "plot": figures.plot,
        "legend": figures.legend,
        "colour_key": heatmap.colour_key,
        "duration": _duration,
    }
    page: str = environment.from_string(_file("page.html.j2")).render(
        story=whole,
        css=_file("page.css"),
        scripts=scripts,
        policy=_policy(scripts),
        widget={"texts": _widget_texts(), "bell": figures.bell()},
    )
    # Above the page itself the template has only macros.
    return page.lstrip()


def write(story: Mapping[str, Any], path: Path) -> Path:
    """Render to `path`, which holds the old page or the whole new one at every moment."""
    write_whole(path, render(story))
    return path


def _file(name: str) -> str:
    return resources.files("spiritlevel.report").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """A content security policy: these scripts run, no other does, and nothing is fetched."""
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _widget_texts() -> dict[str, str]:
    """The widget's sentences with their placeholders unfilled: its script fills them."""
    return {
        key.removeprefix("widget."): sentence(key) for key in keys() if key.startswith("widget.")
    }


def _duration(seconds: float) -> str:
    """Such as 42 s, 4 min 31 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
