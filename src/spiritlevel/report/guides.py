"""Dotted lines through a whole chart, each with its name at the end that the data leave free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spiritlevel.report.axes import placed
from spiritlevel.report.story import Guide, Lines
from spiritlevel.report.words import say

__all__ = ["guide_line", "guide_name"]


def guide_line(guide: Guide) -> dict[str, Any]:
    """The line, as a Plotly shape."""
    along, across = ("x", "y") if guide["axis"] == "y" else ("y", "x")
    return {
        "type": "line",
        "layer": "below",
        f"{along}ref": "paper",
        f"{along}0": 0,
        f"{along}1": 1,
        f"{across}0": guide["at"],
        f"{across}1": guide["at"],
        "line": {"color": "var(--muted)", "width": 1, "dash": "2px,3px"},
    }


def guide_name(guide: Guide, panel: Lines, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Its name, as a Plotly annotation, on a veil that keeps it legible over the `points` drawn."""
    log_x, log_y = panel["x"]["log"], panel["y"]["log"]
    x = placed([x for x, _ in points], log=log_x, what="value")
    y = placed([y for _, y in points], log=log_y, what="value")
    name = {
        "text": say(guide["label"]),
        "showarrow": False,
        "font": {"size": 11, "color": "var(--muted)"},
        "bgcolor": "var(--ground)@0.7",
        "borderpad": 1,
    }
    # Unlike a shape, an annotation is placed by the logarithm on a logarithmic axis.
    if guide["axis"] == "y":
        (at,) = placed([guide["at"]], log=log_y, what="guide")
        end = _clearer_end(at, x, y)
        side = ("left", "right")[end]
        return name | {"xref": "paper", "x": end, "xanchor": side, "y": at, "yanchor": "bottom"}
    (at,) = placed([guide["at"]], log=log_x, what="guide")
    end = _clearer_end(at, y, x)
    side = ("bottom", "top")[end]
    return name | {"yref": "paper", "y": end, "yanchor": side, "x": at, "xanchor": "left"}


def _clearer_end(at: float, along: Sequence[float], across: Sequence[float]) -> int:
    """0 or 1: the end of the line `across == at` from which the data nearby keep farther off."""
    if not along:
        return 1
    low, high = min(along), max(along)

    def clearance(end: float) -> float:
        places = zip(along, across, strict=True)
        return min(abs(b - at) for a, b in places if abs(a - end) <= (high - low) / 3)

    return 0 if clearance(low) > clearance(high) else 1
