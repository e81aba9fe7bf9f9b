"""Pictures of claim 3."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.catalogue import say
from spiritlevel.report.story import Arm, Figure, Lines, Panels, Series
from spiritlevel.study.claims.common import norms
from spiritlevel.study.claims.gradients import THEORY
from spiritlevel.study.figures.build import (
    Frames,
    arm_of,
    axis,
    choice,
    depth_by_time,
    figure,
    lines,
    rate_slider,
    series,
    slider,
)
from spiritlevel.study.records import Record, Records

__all__ = ["figures"]

# (norm, init, style, label)
_LINES: tuple[tuple[str, str, str, str], ...] = (
    ("none", "he*0.5", "thin", "labels.none_half"),
    ("none", "he", "line", "labels.none_he"),
    ("none", "he*2", "dash", "labels.none_double"),
    ("batch", "he", "line", "labels.batch_he"),
)
# What is read while the networks train, and the ends of its colour scale.
_IN_TRAINING = {"activation_std": (1e-3, 1e3), "weight_gradient": (1e-6, 1e2)}
_FLOOR, _CEILING = 1e-15, 1e15


def figures(records: Records) -> Iterator[Figure]:
    if records.select("depth", norm="none"):
        yield _at_start(records)
    if _first_runs(records)[1]:
        yield _by_layer(records)
        yield _by_depth_and_step(records)


def _at_start(records: Records) -> Figure:
    """Layer by layer before the first step, at the depth that the reader sets. The first seed."""
    seed = min(records.values("depth", "seed"))
    batch = max(records.values("depth", "batch_size", norm="none"))
    at = {"seed": seed, "batch_size": batch}
    depths = records.values("depth", "depth", **at) or [None]

    def frame(depth: int | None) -> Panels:
        here = at if depth is None else at | {"depth": depth}
        runs = records.select("depth", **here)
        return [_signal(runs, quantity) for quantity in ("activation_std", "input_gradient")]

    frames: Frames = [frame(depth) for depth in depths]
    read = records.numbers("depth", **at)
    stops = _stops(depths)
    controls = [slider("depth", stops, len(stops) - 1)]
    return figure("gradients.depth", records=read, controls=controls, frames=frames)


def _stops(depths: list[int | None]) -> list[str]:
    """As numbers; of networks whose depths differ by kind, in words that they share."""
    words = [say(f"labels.{name}") for name in ("shallow", "middle", "deep")]
    if len(depths) in (1, 3):
        return words[-len(depths) :]
    return list(map(str, depths))


def _signal(runs: list[Record], quantity: str) -> Lines:
    drawn: list[Series] = []
    for norm, init, style, label in _LINES:
        found = [r for r in runs if (r.settings["norm"], r.settings["init"]) == (norm, init)]
        found = [r for r in found if r.settings.get("activation", "relu") == "relu"]
        if found and found[0].result:
            values = [_drawable(value) for value in found[0].result[quantity]]
            drawn.append(series(arm_of(norm), _counted(values), values, style, label))
            if quantity == "input_gradient" and norm == "batch":
                drawn.append(_theory(values))
    y = axis(quantity, log=True)
    return lines(f"labels.{quantity}_panel", axis("layer"), y, drawn)


def _counted(values: list[float | None]) -> list[int]:
    return list(range(1, len(values) + 1))


def _drawable(value: float | None) -> float | None:
    """A log axis shows neither zero nor what has left the floats."""
    return value if value is not None and _FLOOR < value < _CEILING else None


def _theory(values: list[float | None]) -> Series:
    """1.211 per layer from the loss back, through the measured value in the middle."""
    middle = len(values) // 2
    anchor = values[middle] or 1.0
    curve = [anchor * THEORY ** (middle - layer) for layer in range(len(values))]
    return series("theory", _counted(values), curve, "dash", "labels.theory_rate")


def _first_runs(records: Records) -> tuple[list[float], dict[tuple[str, float], Record]]:
    """The rates, and by norm and rate the run of the first seed."""
    seed = min(records.values("train", "seed"), default=None)
    runs = [
        r
        for r in records.select("train", seed=seed)
        if r.settings["norm"] in norms(records) and r.result and r.result["steps"]
    ]
    found = {(r.settings["norm"], r.settings["lr"]): r for r in runs}
    return sorted({lr for _, lr in found}), found


def _by_layer(records: Records) -> Figure:
    """Each norm's profile over the layers, at the rate and the step that the reader sets."""
    rates, runs = _first_runs(records)
    steps = sorted({step for run in runs.values() if run.result for step in run.result["steps"]})

    def frame(lr: float, step: int) -> Panels | None:
        here = {
            norm: run
            for (norm, rate), run in runs.items()
            if rate == lr and run.result and step in run.result["steps"]
        }
        panels: Panels = []
        for quantity in _IN_TRAINING:
            drawn = [_profile(norm, run, quantity, step) for norm, run in here.items()]
            y = axis(quantity, log=True)
            panels.append(lines(f"labels.{quantity}_layers", axis("layer"), y, drawn))
        return panels if here else None

    frames: Frames = [frame(lr, step) for lr in rates for step in steps]
    controls = [rate_slider(rates), slider("step", list(map(str, steps)), len(steps) - 1)]
    read = records.numbers("train", seed=min(records.values("train", "seed")))
    return figure("gradients.layers", records=read, controls=controls, frames=frames)


def _profile(norm: str, run: Record, quantity: str, step: int) -> Series:
    assert run.result is not None
    row = run.result[quantity][run.result["steps"].index(step)]
    values = [_drawable(value) for value in row]
    arm: Arm = arm_of(norm)
    return series(arm, _counted(values), values)


def _by_depth_and_step(records: Records) -> Figure:
    """The whole of one run: depth by step, for the norm and the rate that the reader sets."""
    rates, runs = _first_runs(records)
    shown = [norm for norm in norms(records) if any(n == norm for n, _ in runs)]

    def frame(norm: str, lr: float) -> Panels | None:
        run = runs.get((norm, lr))
        if run is None or run.result is None:
            return None
        found = run.result
        rows = [str(layer + 1) for layer in range(len(found["activation_std"][0]))]
        return [
            depth_by_time(f"labels.{name}_map", found["steps"], rows, found[name], name, ends)
            for name, ends in _IN_TRAINING.items()
        ]

    frames = [frame(norm, lr) for norm in shown for lr in rates]
    controls = [
        choice("norm", shown, shown.index("batch") if "batch" in shown else 0),
        rate_slider(rates),
    ]
    read = records.numbers("train", seed=min(records.values("train", "seed")))
    return figure("gradients.map", records=read, controls=controls, frames=frames)
