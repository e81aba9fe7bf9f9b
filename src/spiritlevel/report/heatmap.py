"""Depth-by-time panels: colours and axes that all frames share, and what each frame brings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from spiritlevel.catalogue import sentence
from spiritlevel.errors import require
from spiritlevel.report.axes import axis, drawable, layout, number_text, placed
from spiritlevel.report.story import Heatmap

__all__ = ["colour_key", "frame_of_heatmap", "heatmap_in_common", "map_height"]

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
# In pixels, and of a map that may take most of a screen.
MOST, TALL = 520, 760
NAME_LENGTH = 21


def heatmap_in_common(frames: Sequence[Heatmap]) -> dict[str, Any]:
    """Layout, colours and scale of one panel, as all its frames share them."""
    low, _, high = _ends(frames)
    shades = _shades(frames[0])
    columns = [panel["columns"] for panel in frames if panel["columns"]]
    across = axis(grid=False)
    if any(one != columns[0] for one in columns):
        across["range"] = [
            min(_edges(one)[0] for one in columns),
            max(_edges(one)[1] for one in columns),
        ]
    return {
        "kind": "heatmap",
        "log": frames[0]["colour"]["log"],
        "trace": {
            "type": "heatmap",
            "zmin": low,
            "zmax": high,
            "colorscale": [[i / (len(shades) - 1), shade] for i, shade in enumerate(shades)],
            "showscale": False,
            "hovertemplate": f"%{{customdata}}<br>{_hovered()}<extra></extra>",
            "hoverongaps": False,
        },
        "layout": layout(
            map_height(frames),
            xaxis=across,
            yaxis=axis(grid=False) | {"autorange": "reversed", "tickfont": {"size": 11}},
            plot_bgcolor="var(--gap)",
        ),
    }


def _hovered() -> str:
    """What is read of a cell, where Plotly fills in its value and its column."""
    return sentence("reader.hover").format(y="%{text}", x="%{x}")


def map_height(frames: Sequence[Heatmap]) -> int:
    """In pixels: a line for each row, within bounds."""
    most = TALL if frames[0].get("tall") else MOST
    return min(max(220, 60 + 18 * max(len(panel["rows"]) for panel in frames)), most)


def frame_of_heatmap(panel: Heatmap) -> dict[str, Any]:
    """One frame: its values, to four significant figures, first row at the top."""
    names = panel["rows"]
    most = ROWS_NAMED * (TALL if panel.get("tall") else MOST) // MOST
    named = range(0, len(names), math.ceil(len(names) / most) or 1)
    return {
        "columns": list(panel["columns"]),
        "rows": list(names),
        "z": [drawable(row, log=False, figures=4) for row in panel["z"]],
        "ticks": {
            "tickvals": list(named),
            "ticktext": [escape(_shortened(names[row])) for row in named],
        },
    }


def _edges(columns: Sequence[float]) -> tuple[float, float]:
    """Where the first cell begins and the last one ends."""
    if len(columns) == 1:
        return columns[0] - 0.5, columns[0] + 0.5
    return 1.5 * columns[0] - 0.5 * columns[1], 1.5 * columns[-1] - 0.5 * columns[-2]


def colour_key(frames: Sequence[Heatmap]) -> dict[str, Any]:
    """The shades from low to high, and the numbers at both ends and between, as HTML."""
    log = frames[0]["colour"]["log"]
    numbers = [10**place if log else place for place in _ends(frames)]
    html = require("markupsafe", extra="study").Markup
    texts = [html(number_text(float(f"{number:.2g}"))) for number in numbers]
    return {"shades": _shades(frames[0]), "numbers": texts}


def _shades(panel: Heatmap) -> list[str]:
    return SEQUENTIAL if panel["colour"]["middle"] is None else DIVERGING


def _ends(frames: Sequence[Heatmap]) -> tuple[float, float, float]:
    """Where the colours begin, have their middle, and end; as logarithms on a logarithmic scale."""
    colour = frames[0]["colour"]
    ranges = [panel["colour"]["range"] for panel in frames]
    if all(ranges):
        values: list[float | None] = [end for one in ranges if one for end in one]
    else:
        values = [v for panel in frames for row in panel["z"] for v in row]
        values = drawable(values, log=colour["log"])
    known = [value for value in values if value is not None] or [1.0]
    low, high = placed((min(known), max(known)), log=colour["log"], what="colour range")
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
