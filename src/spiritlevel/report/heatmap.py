"""A depth-by-time panel into a plain Plotly heat map, and the key to its colours."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from spiritlevel.errors import require
from spiritlevel.report.axes import axis, drawable, hover_text, layout, number_text, placed
from spiritlevel.report.story import Heatmap

__all__ = ["colour_key", "plot_heatmap"]

# Viridis at nine even steps: perceived lightness rises evenly.
SEQUENTIAL = [
    "#440154",
    "#472d7b",
    "#3b528b",
    "#2c728e",
    "#21918c",
    "#28ae80",
    "#5ec962",
    "#addc30",
    "#fde725",
]
# Lightness (OKLab) falls evenly from the middle; blue and brown differ for every colour vision.
DIVERGING = [
    "#014182",
    "#276ab8",
    "#6496d6",
    "#a5c3e9",
    "#eeeeee",
    "#e4b49f",
    "#cb7d59",
    "#a94911",
    "#6e2a01",
]
ROWS_NAMED = 24
NAME_LENGTH = 21


def plot_heatmap(panel: Heatmap) -> dict[str, Any]:
    """The Plotly figure of a heat map, first row at the top; a missing value shows the ground."""
    log, names = panel["colour"]["log"], panel["rows"]
    z = _values(panel)
    low, _, high = _ends(panel)
    shades = _shades(panel)
    trace = {
        "type": "heatmap",
        "x": panel["columns"],
        "y": list(range(len(names))),
        "z": [[round(math.log10(v), 4) if log and v is not None else v for v in row] for row in z],
        "zmin": low,
        "zmax": high,
        "colorscale": [[i / (len(shades) - 1), shade] for i, shade in enumerate(shades)],
        "showscale": False,
        "text": [["" if v is None else f"{v:.3g}" for v in row] for row in z],
        "customdata": [[hover_text(escape(name))] * len(panel["columns"]) for name in names],
        "hovertemplate": "%{customdata}<br>%{text} at %{x}<extra></extra>",
        "hoverongaps": False,
    }
    named = range(0, len(names), math.ceil(len(names) / ROWS_NAMED) or 1)
    rows = {
        "autorange": "reversed",
        "tickvals": list(named),
        "ticktext": [escape(_shortened(names[row])) for row in named],
        "tickfont": {"size": 11},
    }
    return {
        "data": [trace],
        "layout": layout(
            min(max(220, 60 + 18 * len(names)), 520),
            xaxis=axis(grid=False),
            yaxis=axis(grid=False) | rows,
            plot_bgcolor="var(--gap)",
        ),
    }


def colour_key(panel: Heatmap) -> dict[str, Any]:
    """The shades from low to high, and the numbers at both ends and between, as HTML."""
    log = panel["colour"]["log"]
    numbers = [10**place if log else place for place in _ends(panel)]
    html = require("markupsafe", extra="study").Markup
    texts = [html(number_text(float(f"{number:.2g}"))) for number in numbers]
    return {"shades": _shades(panel), "numbers": texts}


def _shades(panel: Heatmap) -> list[str]:
    return SEQUENTIAL if panel["colour"]["middle"] is None else DIVERGING


def _values(panel: Heatmap) -> list[list[float | None]]:
    return [drawable(row, log=panel["colour"]["log"]) for row in panel["z"]]


def _ends(panel: Heatmap) -> tuple[float, float, float]:
    """Where the colours begin, have their middle, and end; as logarithms on a logarithmic scale."""
    colour = panel["colour"]
    values = [v for row in _values(panel) for v in row if v is not None]
    known = colour["range"] or (min(values, default=1.0), max(values, default=1.0))
    low, high = placed(known, log=colour["log"], what="colour range")
    if colour["middle"] is None:
        return low, (low + high) / 2, high
    (middle,) = placed([colour["middle"]], log=colour["log"], what="middle")
    reach = max(high - middle, middle - low)
    return middle - reach, middle, middle + reach


def _shortened(name: str) -> str:
    """Both ends of a layer's name: the first tells which block, the last which part of it."""
    if len(name) <= NAME_LENGTH:
        return name
    half = (NAME_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
