"""Pictures of claim 3."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.report.story import Arm, Figure, Lines, Series
from spiritlevel.report.words import Text
from spiritlevel.study.claims.common import best_rate
from spiritlevel.study.claims.gradients import DEEP_ARMS, THEORY
from spiritlevel.study.figures.build import axis, depth_by_time, figure, lines, series
from spiritlevel.study.records import Record, Records

__all__ = ["figures"]

# (model, norm, init, arm's colour, style, label)
_LINES: tuple[tuple[str, str, str, Arm, str, str], ...] = (
    ("mlp", "none", "he*0.5", "none", "thin", "labels.none_half"),
    ("mlp", "none", "he", "none", "line", "labels.none_he"),
    ("mlp", "none", "he*2", "none", "dash", "labels.none_double"),
    ("mlp", "batch", "he", "batch", "line", "labels.plain_batch"),
    ("residual_mlp", "batch", "he", "layer", "line", "labels.residual_batch"),
)
# What is read while the nets train, and the ends of its colour scale.
_IN_TRAINING = {"activation_std": (1e-3, 1e3), "weight_gradient": (1e-6, 1e2)}
_FLOOR, _CEILING = 1e-15, 1e15


def figures(records: Records) -> Iterator[Figure]:
    if records.select("depth"):
        yield figure(
            "gradients.depth",
            _by_depth(records, "activation_std", "activation_std"),
            _by_depth(records, "input_gradient", "input_gradient"),
        )
    for quantity, scale in _IN_TRAINING.items():
        panels = (_heatmap(records, quantity, scale, *arm) for arm in DEEP_ARMS)
        drawn = [panel for panel in panels if panel]
        if drawn:
            yield figure(f"gradients.{quantity}", *drawn)


def _by_depth(records: Records, quantity: str, label: str) -> Lines:
    """The first seed of each arm, layer by layer."""
    drawn: list[Series] = []
    for model, norm, init, arm, style, text in _LINES:
        runs = records.select(
            "depth", model=model, norm=norm, init=init, batch_size=128, activation="relu"
        )
        if runs and runs[0].result:
            values = [_drawable(v) for v in runs[0].result[quantity]]
            drawn.append(series(arm, list(range(1, len(values) + 1)), values, style, text))
            if quantity == "input_gradient" and model == "mlp" and norm == "batch":
                drawn.append(_theory(values))
    return lines(f"labels.{quantity}_panel", axis("layer"), axis(label, log=True), drawn)


def _drawable(value: float | None) -> float | None:
    """A log axis shows neither zero nor what has left the floats."""
    return value if value is not None and _FLOOR < value < _CEILING else None


def _theory(values: list[float | None]) -> Series:
    """1.211 per layer from the loss back, through the measured value in the middle."""
    middle = len(values) // 2
    anchor = values[middle] or 1.0
    curve = [anchor * THEORY ** (middle - layer) for layer in range(len(values))]
    return series("theory", list(range(1, len(values) + 1)), curve, "dash", "labels.theory_rate")


def _heatmap(
    records: Records, quantity: str, scale: tuple[float, float], model: str, norm: str, init: str
) -> object | None:
    """One quantity by layer and step at the arm's best rate, first seed."""
    rate = best_rate(records, "deep", norm, model=model, init=init)
    runs: list[Record] = records.select("deep", model=model, norm=norm, init=init, lr=rate)
    if not runs or not runs[0].result or not runs[0].result["steps"]:
        return None
    result = runs[0].result
    rows = [str(layer + 1) for layer in range(len(result[quantity][0]))]
    title: Text = f"labels.deep_{model}_{norm}"
    return depth_by_time(title, result["steps"], rows, result[quantity], quantity, scale)
