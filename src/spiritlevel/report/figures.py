"""Figures as the page's scripts draw them: what all frames share, and each frame's own numbers.

A colour is written as CSS writes it, `var(--arm-batch)`, with `@0.2` behind it for an opacity;
web/charts.js puts the value of the reader's colour scheme in its place. Titles and axis labels are
the page's own HTML, which wraps, so a chart holds only what needs coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spiritlevel.report.axes import axis, hover_text, layout, scale
from spiritlevel.report.heatmap import frame_of_heatmap, heatmap_in_common, map_height
from spiritlevel.report.lines import HEIGHT, frame_of_lines, is_marked, lines_in_common, name_of
from spiritlevel.report.pool import pooled
from spiritlevel.report.story import Figure, Panel, Panels, Series
from spiritlevel.report.words import plain, say

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["SHAPES", "SYMBOLS", "bell", "drawing", "frames_of", "height", "legend"]

# Plotly's marker by arm, so that an arm is not known by its colour alone.
SYMBOLS = {
    "none": "circle",
    "batch": "square",
    "group": "diamond",
    "layer": "triangle-up",
    "noisy-batch": "square-open",
    "noisy-none": "circle-open",
    "ghost": "triangle-down",
    "off": "cross",
    "theory": "x",
    "other": "pentagon",
}
# The same markers as SVG paths around (0, 0), for the legend.
SHAPES = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "square": "M-3.5-3.5h7v7h-7Z",
    "diamond": "M0-5 5 0 0 5-5 0Z",
    "triangle-up": "M0-4.5 4.5 3.5h-9Z",
    "triangle-down": "M0 4.5 4.5-3.5h-9Z",
    "cross": "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
    "x": "M-4-2.5-2.5-4 0-1.5 2.5-4 4-2.5 1.5 0 4 2.5 2.5 4 0 1.5-2.5 4-4 2.5-1.5 0Z",
    "pentagon": "M0-4.5 4.3-1.4 2.6 3.6h-5.2L-4.3-1.4Z",
}


def frames_of(figure: Figure) -> list[Panels]:
    """The panels of each frame that was run, of the only one without controls."""
    frames = figure.get("frames") or [figure["panels"]]
    return [frame for frame in frames if frame is not None]


def drawing(figure: Figure) -> dict[str, Any]:
    """What the scripts need: controls, what panels share, and frames as `pooled` wrote them."""
    legend_of = {(e["label"], e["arm"]): index for index, e in enumerate(legend(figure))}

    def described(series: Series) -> dict[str, Any]:
        arm, label = series["arm"], name_of(series)
        return {
            "arm": arm,
            "symbol": SYMBOLS[arm],
            "style": series["style"],
            "marked": is_marked(series),
            "name": label,
            "hover": hover_text(label),
            "entry": legend_of[label, arm],
        }

    shared = [_in_common(panels) for panels in zip(*frames_of(figure), strict=True)]

    def framed(panel: Panel, common: dict[str, Any]) -> dict[str, Any]:
        words = {
            "title": say(panel["title"]),
            "x": say(panel["x"]["label"]),
            "y": say(panel["y"]["label"]),
        }
        if panel["kind"] == "heatmap":
            words["z"] = say(panel["colour"]["label"])
            return {"words": words, **frame_of_heatmap(panel)}
        return {"words": words, **frame_of_lines(panel, common, described)}

    frames = [
        None if frame is None else [framed(*pair) for pair in zip(frame, shared, strict=True)]
        for frame in figure.get("frames") or [figure["panels"]]
    ]
    return {
        "id": figure["id"],
        "title": plain(figure["title"]),
        "controls": [
            {"label": plain(control["label"]), "values": list(control["values"])}
            for control in figure.get("controls", [])
        ],
        "panels": [
            {name: value for name, value in one.items() if name != "guides"} for one in shared
        ],
        "frames": pooled(frames),
    }


def _in_common(panels: Sequence[Any]) -> dict[str, Any]:
    if panels[0]["kind"] == "heatmap":
        return heatmap_in_common(panels)
    return lines_in_common(panels)


def height(panels: Sequence[Any]) -> int:
    """Of one panel in all its frames, in pixels."""
    return map_height(panels) if panels[0]["kind"] == "heatmap" else HEIGHT


def legend(figure: Figure) -> list[dict[str, Any]]:
    """One entry for each label of an arm in any frame, drawn as where it is first.

    `shown`: it is in the frame that is shown first.
    """
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for panels in (figure["panels"], *frames_of(figure)):
        for panel in panels:
            for series in panel["series"] if panel["kind"] == "lines" else ():
                arm, label = series["arm"], name_of(series)
                if (label, arm) not in entries:
                    entries[label, arm] = _entry(series, label, shown=panels is figure["panels"])
    return list(entries.values())


def _entry(series: Series, label: Markup, *, shown: bool) -> dict[str, Any]:
    symbol = SYMBOLS[series["arm"]]
    return {
        "label": label,
        "arm": series["arm"],
        "style": series["style"],
        "shape": SHAPES[symbol.removesuffix("-open")] if is_marked(series) else None,
        "open": symbol.endswith("-open"),
        "shown": shown,
    }


def bell() -> dict[str, Any]:
    """The standard normal density, a band of one deviation each side, and no marks yet."""
    curve = [step / 20 for step in range(-80, 81)]
    band = [z for z in curve if abs(z) <= 1]
    unlabelled: Any = {"label": "", "log": False}
    marks = {
        "x": [],
        "y": [],
        "text": [],
        "mode": "markers+text",
        "textposition": "top center",
        "cliponaxis": False,
        "marker": {"color": "var(--arm-batch)", "symbol": SYMBOLS["batch"], "size": 9},
        "textfont": {"color": "var(--text)", "size": 13},
        "hovertemplate": "%{text} → %{x:.4~g}<extra></extra>",
    }
    return {
        "data": [
            {
                "x": band,
                "y": _density(band),
                "mode": "none",
                "fill": "tozeroy",
                "fillcolor": "var(--arm-batch)@0.14",
                "hoverinfo": "skip",
            },
            {
                "x": curve,
                "y": _density(curve),
                "mode": "lines",
                "line": {"color": "var(--arm-theory)", "width": 1.5},
                "hoverinfo": "skip",
            },
            marks,
        ],
        "layout": layout(
            240,
            xaxis=axis(grid=False) | scale(unlabelled, range(-4, 5), at_points=True),
            yaxis=axis(grid=True) | {"range": [0, 0.47], "visible": False},
        ),
    }


def _density(values: Sequence[float]) -> list[float]:
    return [round(math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 6) for z in values]
