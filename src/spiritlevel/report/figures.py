"""Panels into plain Plotly figures, `{"data": [...], "layout": {...}}`.

A colour is written as CSS writes it, `var(--arm-batch)`, with `@0.2` behind it for an opacity;
page.js puts the value of the reader's colour scheme in its place. Titles and axis labels are the
page's own HTML, which wraps, so a figure holds only what needs coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from spiritlevel.report.axes import FEW, axis, drawable, hover_text, layout, scale
from spiritlevel.report.guides import guide_line, guide_name
from spiritlevel.report.heatmap import plot_heatmap
from spiritlevel.report.story import Figure, Heatmap, Lines, Series
from spiritlevel.report.words import say

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["bell", "legend", "plot"]

Values = Sequence[float | None]

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


def plot(panel: Lines | Heatmap) -> dict[str, Any]:
    """The Plotly figure of one panel."""
    return plot_heatmap(panel) if panel["kind"] == "heatmap" else _plot_lines(panel)


def legend(figure: Figure) -> list[dict[str, Any]]:
    """One entry for each label of an arm in the figure's panels, drawn as where it is first."""
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for panel in figure["panels"]:
        for series in panel["series"] if panel["kind"] == "lines" else ():
            arm, style, label = series["arm"], series["style"], _label(series)
            symbol = SYMBOLS[arm]
            entry = {
                "label": label,
                "arm": arm,
                "style": style,
                "shape": SHAPES[symbol.removesuffix("-open")] if _is_marked(series) else None,
                "open": symbol.endswith("-open"),
            }
            entries.setdefault((label, arm), entry)
    return list(entries.values())


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
            _outline(band, [0.0] * len(band), _density(band))
            | {"fillcolor": "var(--arm-batch)@0.14"},
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


def _plot_lines(panel: Lines) -> dict[str, Any]:
    x_log, y_log = panel["x"]["log"], panel["y"]["log"]
    guides = panel["guides"]
    xs: list[float | None] = [guide["at"] for guide in guides if guide["axis"] == "x"]
    ys: list[float | None] = [guide["at"] for guide in guides if guide["axis"] == "y"]
    traces, points = [], []
    for series in panel["series"]:
        x, y = drawable(series["x"], log=x_log), drawable(series["y"], log=y_log)
        low = drawable(series.get("low", ()), log=y_log, figures=4)
        high = drawable(series.get("high", ()), log=y_log, figures=4)
        traces += _traces(series, x, y, low, high)
        points += [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
        xs += x
        ys += [*y, *low, *high]
    return {
        "data": traces,
        "layout": layout(
            270,
            xaxis=axis(grid=False) | scale(panel["x"], xs, at_points=True),
            yaxis=axis(grid=True) | scale(panel["y"], ys, at_points=False),
            shapes=[guide_line(guide) for guide in guides],
            annotations=[guide_name(guide, panel, points) for guide in guides],
        ),
    }


def _label(series: Series) -> Markup:
    return say(f"arms.{series['arm']}" if series["label"] is None else series["label"])


def _is_marked(series: Series) -> bool:
    return series["style"] == "dots" or (series["style"] != "thin" and len(series["x"]) <= FEW)


def _traces(
    series: Series, x: Values, y: Values, low: Values, high: Values
) -> list[dict[str, Any]]:
    """The series, and behind it the area from `low` to `high`; dots have error bars instead."""
    color, style = f"var(--arm-{series['arm']})", series["style"]
    dots, thin = style == "dots", style == "thin"
    name = hover_text(_label(series))
    spread = " (%{customdata[0]:.3~g} to %{customdata[1]:.3~g})" if low else ""
    trace: dict[str, Any] = {
        "type": "scatter",
        "x": x,
        "y": y,
        "mode": "markers" if dots else "lines+markers" if _is_marked(series) else "lines",
        "marker": {"color": color, "symbol": SYMBOLS[series["arm"]], "size": 9 if dots else 7},
        "line": {
            "color": color,
            "width": 1 if thin else 2,
            "dash": "7px,4px" if style == "dash" else "solid",
        },
        "opacity": 0.6 if thin else 1,
        "hovertemplate": f"{name}<br>%{{y:.4~g}}{spread} at %{{x:.6~g}}<extra></extra>",
    }
    if not low:
        return [trace]
    trace["customdata"] = list(zip(low, high, strict=True))
    if dots:
        trace["error_y"] = _error_bars(y, low, high) | {"color": color}
        return [trace]
    return [_outline(x, low, high) | {"fillcolor": f"{color}@0.16"}, trace]


def _error_bars(y: Values, low: Values, high: Values) -> dict[str, Any]:
    def reach(above: Values, below: Values) -> list[float | None]:
        pairs = zip(above, below, strict=True)
        return [None if a is None or b is None else float(f"{a - b:.6g}") for a, b in pairs]

    bars = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 0}
    return bars | {"array": reach(high, y), "arrayminus": reach(y, low)}


def _outline(x: Values, low: Values, high: Values) -> dict[str, Any]:
    """A filled area from `low` to `high`: one closed outline for each stretch without gaps."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    points = zip(x, low, high, strict=True)
    for whole, group in groupby(points, key=lambda point: None not in point):
        if whole:
            stretch = list(group)
            xs += [p[0] for p in stretch] + [p[0] for p in reversed(stretch)] + [None]
            ys += [p[1] for p in stretch] + [p[2] for p in reversed(stretch)] + [None]
    return {
        "type": "scatter",
        "x": xs,
        "y": ys,
        "mode": "none",
        "fill": "toself",
        "hoverinfo": "skip",
    }
