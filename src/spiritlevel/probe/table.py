"""Readings: one row for each sampled step and layer, in bounded memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spiritlevel.errors import require
from spiritlevel.files import write_whole

__all__ = ["MOST_STEPS", "Layer", "Readings"]

MOST_STEPS = 512
"""Sampled steps that are kept: wider than a screen's heat-map. With 200 layers 23 MB."""


@dataclass(frozen=True)
class Layer:
    """A row's layer."""

    path: str
    kind: str
    """"norm", "activation" or "weight"."""
    type: str
    """The name of its class."""


class Readings:
    """A tidy table: `step`, `layer`, `kind`, `type`, and one column for each number.

    What was not read of a layer is NaN. When `MOST_STEPS` steps are there, every second one is let
    go, and from then on half as many are taken: they stay evenly spaced over the whole run.
    """

    def __init__(self, layers: Sequence[Layer], metrics: Sequence[str]) -> None:
        self.layers, self.metrics = tuple(layers), tuple(metrics)
        self.steps: list[int] = []
        self.stride = 1
        """Of the steps that would be sampled, each `stride`-th is."""
        self._values: list[np.ndarray[Any, np.dtype[np.float64]]] = []

    def add(self, step: int, values: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        """`values` (layers, metrics)."""
        self.steps.append(step)
        self._values.append(values)
        if len(self.steps) >= MOST_STEPS:
            self.steps, self._values = self.steps[::2], self._values[::2]
            self.stride *= 2

    @property
    def columns(self) -> tuple[str, ...]:
        return ("step", "layer", "kind", "type", *self.metrics)

    @property
    def decimated(self) -> str:
        """Which of the sampled steps are kept; empty where all are."""
        if self.stride == 1:
            return ""
        return f"of the steps to sample, one in {self.stride} is kept, evenly spaced"

    def __len__(self) -> int:
        return len(self.steps) * len(self.layers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step, values in zip(self.steps, self._values, strict=True):
            for layer, row in zip(self.layers, values.tolist(), strict=True):
                yield {
                    "step": step,
                    "layer": layer.path,
                    "kind": layer.kind,
                    "type": layer.type,
                    **dict(zip(self.metrics, row, strict=True)),
                }

    def of(self, layer: str, metric: str) -> list[float]:
        """One number of one layer, step by step. Raises KeyError."""
        index = next((i for i, each in enumerate(self.layers) if each.path == layer), None)
        if index is None or metric not in self.metrics:
            raise KeyError(layer if index is None else metric)
        column = self.metrics.index(metric)
        return [float(values[index, column]) for values in self._values]

    def backwards(self, index: int) -> Iterator[tuple[int, list[float]]]:
        """The readings of the layer at `index`, the last step first."""
        for step, values in zip(reversed(self.steps), reversed(self._values), strict=True):
            yield step, values[index].tolist()

    def matrix(self, metric: str) -> list[list[float]]:
        """The same of all layers, (layers, steps)."""
        column = self.metrics.index(metric)
        if not self._values:
            return [[] for _ in self.layers]
        found: list[list[float]] = np.stack([v[:, column] for v in self._values], axis=1).tolist()
        return found

    def to_pandas(self) -> Any:
        """A pandas.DataFrame. Raises MissingExtra."""
        return require("pandas", extra="probe").DataFrame(list(self), columns=list(self.columns))

    def to_parquet(self, path: str | Path) -> None:
        """Raises MissingExtra, UsageError where `path` cannot be written."""
        require("pyarrow", extra="probe")
        write_whole(Path(path), self.to_pandas().to_parquet(index=False))

    def to_json(self, path: str | Path | None = None) -> str:
        """A list of rows, NaN and infinities as null; written to `path`, if one is given."""
        rows = [{name: _plain(value) for name, value in row.items()} for row in self]
        text = json.dumps(rows, allow_nan=False)
        if path is not None:
            write_whole(Path(path), text + "\n")
        return text


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
