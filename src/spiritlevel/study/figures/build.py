"""Small builders of what `report` draws; see `spiritlevel.report.story` for the shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from spiritlevel.catalogue import say
from spiritlevel.report.story import (
    Arm,
    Axis,
    Control,
    Figure,
    Guide,
    Heatmap,
    Lines,
    Panels,
    Series,
)
from spiritlevel.report.words import Text
from spiritlevel.study.claims.judgement import setting
from spiritlevel.study.networks import title

__all__ = [
    "Frames",
    "arm_of",
    "axis",
    "by_network",
    "choice",
    "depth_by_time",
    "figure",
    "guide",
    "label_at",
    "lines",
    "mean_curve",
    "rate_slider",
    "series",
    "slider",
    "thinned",
]

Frames = list[Panels | None]
"""The panels at every setting of the controls, the last control's running fastest."""

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


def label_at(norm: str, lr: float) -> Text:
    """A norm as the other legends name it, and its rate: group norm 8, rate 0.1."""
    given, arm = norm.partition(":")[2], arm_of(norm)
    name = norm if arm == "other" else f"{say(f'arms.{arm}')} {given}".strip()
    return ["labels.at_rate", {"norm": name, "lr": setting(lr)}]


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


def figure(
    name: str,
    *panels: Any,
    records: Sequence[int] = (),
    controls: Sequence[Control] = (),
    frames: Sequence[Panels | None] | None = None,
    **words: str,
) -> Figure:
    """`name` is `claim.figure`; its title, summary and caption are in the catalogue.

    With `controls`, `frames` has the panels of each of their settings, and `panels` are not given.
    """
    caption: Text = [f"figures.{name}.caption", words] if words else f"figures.{name}.caption"
    found: Figure = {
        "id": name.replace(".", "-"),
        "title": f"figures.{name}.title",
        "summary": f"figures.{name}.summary",
        "caption": caption,
        "panels": list(panels),
        "records": sorted(set(records)),
    }
    return found if frames is None else _played(found, list(controls), list(frames))


def _played(found: Figure, controls: list[Control], frames: Frames) -> Figure:
    """With the frame at the controls' start, or else the first that there is, to begin with."""
    stops = [len(control["values"]) for control in controls]
    settings = list(product(*map(range, stops)))
    at = settings.index(tuple(control["start"] for control in controls))
    if frames[at] is None:
        at = next(place for place, frame in enumerate(frames) if frame is not None)
    begun = [
        control | {"start": start} for control, start in zip(controls, settings[at], strict=True)
    ]
    return found | {"panels": frames[at], "controls": begun, "frames": frames}  # type: ignore[return-value]


def slider(label: str, values: Sequence[str], start: int = 0) -> Control:
    """`label` is a key of [labels]."""
    return {"label": f"labels.{label}", "values": list(values), "start": start, "kind": "slider"}


def choice(label: str, values: Sequence[str], start: int = 0) -> Control:
    return {"label": f"labels.{label}", "values": list(values), "start": start, "kind": "choice"}


def rate_slider(rates: Sequence[float]) -> Control:
    """Learning rates, beginning with the one in the middle."""
    return slider("lr", [setting(lr) for lr in rates], len(rates) // 2)


def by_network(figures: Mapping[str, Sequence[Figure]]) -> list[Figure]:
    """The same figures of several networks as one each, with a choice of the network."""
    if len(figures) == 1:
        return list(next(iter(figures.values())))
    found: dict[str, dict[str, Figure]] = {}
    for name, drawn in figures.items():
        for one in drawn:
            found.setdefault(one["id"], {})[name] = one
    return [_one_of(of_network) for of_network in found.values()]


def _one_of(figures: Mapping[str, Figure]) -> Figure:
    """Side by side if the networks' controls are the same; settings that one lacks are None."""
    first = next(iter(figures.values()))
    names = [title(name) for name in figures]
    inner = _common_controls([one.get("controls", []) for one in figures.values()])
    frames: Frames = []
    for one in figures.values():
        drawn = _with_own_layers(one.get("frames", [one["panels"]]))
        own = dict(zip(_stops(one.get("controls", [])), drawn, strict=True))
        frames += [own.get(stop) for stop in _stops(inner)]
    frames = _alike(frames)
    merged: Any = {
        name: value for name, value in first.items() if name not in ("controls", "frames")
    }
    merged["records"] = sorted({n for one in figures.values() for n in one.get("records", [])})
    return _played(merged, [choice("network", names), *inner], frames)


def _with_own_layers(frames: Sequence[Panels | None]) -> Frames:
    """A network's frames, whose axis of layers reaches from its first to its last."""
    drawn = [frame for frame in frames if frame is not None]
    for panels in zip(*drawn, strict=False):
        of_layers = [p for p in panels if p["kind"] == "lines" and _is_of_layers(p["x"])]
        layers = [x for panel in of_layers for one in panel["series"] for x in one["x"]]
        for panel in of_layers:
            if layers:
                x = panel["x"].copy()  # it may be that of other panels, too
                x["range"], x["own"] = [min(layers), max(layers)], True
                panel["x"] = x
    return list(frames)


def _is_of_layers(x: Axis) -> bool:
    return x["label"] == "labels.layer"


def _alike(frames: Frames) -> Frames:
    """Those with as many panels as the richest; while a run goes, one network may lack an arm."""
    most = max(len(frame) for frame in frames if frame is not None)
    return [frame if frame is not None and len(frame) == most else None for frame in frames]


def _stops(controls: Sequence[Control]) -> list[tuple[str, ...]]:
    return list(product(*(control["values"] for control in controls)))


def _order(found: Sequence[Sequence[str]]) -> Callable[[str], tuple[bool, float]]:
    """Numbers by size, then words by the latest place that any of the controls gives them."""
    latest: dict[str, int] = {}
    for values in found:
        for place, text in enumerate(values):
            latest[text] = max(place, latest.get(text, 0))

    def key(text: str) -> tuple[bool, float]:
        try:
            return False, float(text.replace("−", "-"))
        except ValueError:
            return True, latest[text]

    return key


def _common_controls(found: Sequence[Sequence[Control]]) -> list[Control]:
    """The controls of all, each with every value that any has, in their order."""
    merged: list[Control] = []
    for same in zip(*found, strict=True):
        values = list(dict.fromkeys(value for control in same for value in control["values"]))
        if same[0]["kind"] == "slider":
            values.sort(key=_order([control["values"] for control in same]))
        start = values.index(same[0]["values"][same[0]["start"]])
        merged.append(same[0] | {"values": values, "start": start})
    return merged


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
