"""Small builders of what `report` draws; see `spiritlevel.report.story` for the shapes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from spiritlevel.report.story import Arm, Axis, Figure, Guide, Heatmap, Lines, Series
from spiritlevel.report.words import Text

__all__ = [
    "arm_of",
    "axis",
    "depth_by_time",
    "figure",
    "guide",
    "lines",
    "mean_curve",
    "series",
    "thinned",
]

_NAMED: dict[str, Arm] = {
    "none": "none",
    "batch": "batch",
    "layer": "layer",
    "noisy-batch": "noisy-batch",
    "noisy-none": "noisy-none",
    "group": "group",
    "ghost": "ghost",
}


def arm_of(norm: str) -> Arm:
    """The colour of a norm: `group:8` -> group."""
    return _NAMED.get(norm.partition(":")[0], "other")


def axis(label: str, *, log: bool = False, range: Sequence[float] | None = None) -> Axis:
    """`label` is a key of [labels]."""
    return {"label": f"labels.{label}", "log": log, "range": None if range is None else list(range)}


def series(
    arm: Arm,
    x: Sequence[float],
    y: Sequence[float | None],
    style: Any = "line",
    label: Text | None = None,
) -> Series:
    return {"arm": arm, "label": label, "x": list(x), "y": list(y), "style": style}


def guide(axis: Any, at: float, label: str) -> Guide:
    return {"axis": axis, "at": at, "label": f"labels.{label}"}


def lines(
    title: Text, x: Axis, y: Axis, drawn: Sequence[Series], guides: Sequence[Guide] = ()
) -> Lines:
    return {
        "kind": "lines",
        "title": title,
        "x": x,
        "y": y,
        "series": list(drawn),
        "guides": list(guides),
    }


def depth_by_time(
    title: Text,
    steps: Sequence[int],
    rows: Sequence[str],
    z: Sequence[Sequence[float | None]],
    colour: str,
    range: Sequence[float] | None = None,
) -> Heatmap:
    """One row a layer, the first layer on top; `z` comes by step, as it was read."""
    by_layer = [list(row) for row in zip(*z, strict=True)]
    return {
        "kind": "heatmap",
        "title": title,
        "x": {"label": "labels.step"},
        "y": {"label": "labels.layer"},
        "columns": list(steps),
        "rows": list(rows),
        "z": by_layer,
        "colour": {
            "label": f"labels.{colour}",
            "log": True,
            "range": None if range is None else list(range),
            "middle": None,
        },
    }


def figure(name: str, *panels: Any, **words: str) -> Figure:
    """`name` is `claim.figure`; its title and caption are in the catalogue's [figures]."""
    caption: Text = [f"figures.{name}.caption", words] if words else f"figures.{name}.caption"
    return {
        "id": name.replace(".", "-"),
        "title": f"figures.{name}.title",
        "caption": caption,
        "panels": list(panels),
    }


def mean_curve(curves: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The mean over runs at each point up to the shortest; None where one of them has none."""
    return [
        None if None in column else fmean(v for v in column if v is not None)
        for column in zip(*curves, strict=False)
    ]


def thinned(values: Sequence[Any], most: int = 120) -> tuple[list[int], list[Any]]:
    """At most about `most` of the points, evenly spread, with their indices."""
    step = max(1, len(values) // most)
    return list(range(0, len(values), step)), list(values[::step])
