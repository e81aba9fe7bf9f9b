"""Panels of lines: what the axes share over all frames, and what each frame brings.

web/charts.js makes Plotly's traces of a frame's series, so that a page holds each number once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spiritlevel.report.axes import FEW, axis, drawable, layout, placed, scale
from spiritlevel.report.guides import guide_line, guide_name
from spiritlevel.report.story import Axis, Guide, Lines, Series
from spiritlevel.report.words import say

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["HEIGHT", "frame_of_lines", "is_marked", "lines_in_common", "name_of"]

# Pixels.
HEIGHT = 270
# A chart cannot show more of them, and a table need not.
FIGURES = 4
# How far the axes reach beyond the data, as a share of them, where frames have axes in common.
ROOM = 0.05


def lines_in_common(frames: Sequence[Lines]) -> dict[str, Any]:
    """Layout and scales of one panel: `{"kind", "log": [x, y], "layout", "guides"}`.

    With several frames the ranges hold all of them, so that what moves can be seen to move.
    """
    first = frames[0]
    x_log, y_log = first["x"]["log"], first["y"]["log"]
    guides = [guide for panel in frames for guide in panel["guides"]]
    points = [point for panel in frames for point in _points(panel)]
    xs = [x for x, _ in points] + [g["at"] for g in guides if g["axis"] == "x"]
    ys = [*_heights(frames)] + [g["at"] for g in guides if g["axis"] == "y"]
    x_axis, y_axis = _common(panel["x"] for panel in frames), _common(p["y"] for p in frames)
    found = {
        "x": axis(grid=False) | scale(x_axis, xs, at_points=True),
        "y": axis(grid=True) | scale(y_axis, ys, at_points=False),
    }
    if len(frames) > 1:
        marked = any(is_marked(series) for panel in frames for series in panel["series"])
        found["x"].setdefault("range", _reach(xs, log=x_log, room=ROOM if marked else 0))
        found["y"].setdefault("range", _reach(ys, log=y_log, room=ROOM))
    return {
        "kind": "lines",
        "log": [x_log, y_log],
        "layout": layout(HEIGHT, xaxis=found["x"], yaxis=found["y"]),
        "guides": _named(guides, first, points),
    }


def _named(guides: Sequence[Guide], panel: Lines, points: Sequence[tuple[float, float]]) -> Any:
    """Line and name of each guide of any frame, by what it is."""
    found: dict[str, Any] = {}
    for guide in guides:
        if str(guide) not in found:
            found[str(guide)] = [guide_line(guide), guide_name(guide, panel, points)]
    return found


def frame_of_lines(
    panel: Lines, common: dict[str, Any], described: Callable[[Series], dict[str, Any]]
) -> dict[str, Any]:
    """One frame: its series, to `FIGURES` significant figures, and its guides' shapes and names."""
    guides = [common["guides"][str(guide)] for guide in panel["guides"]]
    x, log = panel["x"], common["log"][0]
    own = {"range": _reach(x.get("range") or [], log=log, room=ROOM)} if x.get("own") else {}
    return {
        "x": own,
        "series": [_series(series, described) for series in panel["series"]],
        "shapes": [shape for shape, _ in guides],
        "annotations": [name for _, name in guides],
    }


def _series(series: Series, described: Callable[[Series], dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "as": described(series),
        "x": _short(series["x"], 6),
        "y": _short(series["y"], FIGURES),
    }
    if "low" in series:
        found |= {end: _short(series[end], FIGURES) for end in ("low", "high")}
    return found


def _short(values: Iterable[float | None], figures: int) -> list[float | None]:
    """So many significant figures, and whole numbers without their point."""
    found = drawable(values, log=False, figures=figures)
    return [int(v) if v is not None and abs(v) < 1e15 and v == int(v) else v for v in found]


def name_of(series: Series) -> Markup:
    """As the legend and the tables have it, in HTML."""
    return say(f"arms.{series['arm']}" if series["label"] is None else series["label"])


def is_marked(series: Series) -> bool:
    """Whether each of its points has a mark: there are few of them, or nothing else is drawn."""
    return series["style"] == "dots" or (series["style"] != "thin" and len(series["x"]) <= FEW)


def _points(panel: Lines) -> Iterator[tuple[float, float]]:
    """Where the panel has points that its axes can show."""
    x_log, y_log = panel["x"]["log"], panel["y"]["log"]
    for series in panel["series"]:
        for x, y in zip(series["x"], series["y"], strict=True):
            if y is not None and not (x_log and x <= 0) and not (y_log and y <= 0):
                yield x, y


def _heights(frames: Sequence[Lines]) -> Iterator[float]:
    for panel in frames:
        log = panel["y"]["log"]
        for series in panel["series"]:
            for values in (series["y"], series.get("low", []), series.get("high", [])):
                yield from (v for v in values if v is not None and not (log and v <= 0))


def _common(axes: Iterable[Axis]) -> Axis:
    """One axis for all frames: the hull of their ranges, or none unless each frame has one."""
    every = list(axes)
    ranges = [one.get("range") for one in every]
    ends = [end for one in ranges if one for end in one]
    hull = [min(ends), max(ends)] if ends and all(ranges) else None
    # One axis keeps its ends in their order, which may be reversed.
    return {**every[0], "range": ranges[0] if len(every) == 1 else hull}


def _reach(values: Iterable[float | None], *, log: bool, room: float) -> list[float] | None:
    """From the least to the greatest value with some room; as exponents on a logarithmic axis."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = placed((min(known), max(known)), log=log, what="value")
    space = room * (high - low) or (0.5 if low == high else 0)
    return [float(f"{low - space:.6g}"), float(f"{high + space:.6g}")]
