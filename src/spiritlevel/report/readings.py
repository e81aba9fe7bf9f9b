"""A probe's record as its page needs it: complete, of one shape, and with finite numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from spiritlevel.catalogue import sentence
from spiritlevel.errors import UsageError

__all__ = ["COUNTERS", "Layer", "Readings", "Rows", "readings"]

# What is counted at every step of a layer, in the order of the table.
COUNTERS = (
    "forwards_per_step",
    "writes_train_grad",
    "writes_train_no_grad",
    "writes_eval",
    "recomputed",
    "batch_size",
    "values",
)
Rows = list[list[float | None]]


@dataclass(frozen=True)
class Layer:
    path: str
    kind: str
    type: str


@dataclass(frozen=True)
class Readings:
    """What the record held. `metrics[name][layer][step]`; None where nothing was read."""

    title: str
    model: str
    every: int | None
    steps: list[float]
    layers: list[Layer]
    metrics: dict[str, Rows]
    counts: dict[str, float]
    counters: list[Mapping[str, Any]]
    overhead: Mapping[str, float]
    unseen: list[str]
    notes: list[str]
    decimated: str


def readings(record: Mapping[str, Any]) -> Readings:
    """The record, in which every piece may be missing. Raises UsageError for a wrong shape."""
    steps = [float(step) for step in record.get("steps") or []]
    if any(after <= before for before, after in pairwise(steps)):
        raise UsageError("got steps of a probe's record out of order, wanted each once, rising")
    layers = [
        Layer(str(one["path"]), str(one.get("kind", "")), str(one.get("type", "")))
        for one in record.get("layers") or []
    ]
    metrics = {
        str(name): _rows(str(name), rows, len(layers), len(steps))
        for name, rows in (record.get("metrics") or {}).items()
    }
    return Readings(
        title=str(record.get("title") or ""),
        model=str(record.get("model") or sentence("probe_page.this_model")),
        every=record.get("every"),
        steps=steps,
        layers=layers,
        metrics=metrics,
        counts=dict(record.get("counts") or {}),
        counters=list(record.get("counters") or []),
        overhead={
            k: v for k, v in (record.get("overhead") or {}).items() if _number(v) is not None
        },
        unseen=[str(text) for text in record.get("unseen") or []],
        notes=[str(text) for text in record.get("notes") or []],
        decimated=str(record.get("decimated") or ""),
    )


def _rows(name: str, rows: Sequence[Sequence[Any]], layers: int, steps: int) -> Rows:
    if len(rows) != layers or any(len(row) != steps for row in rows):
        found = sorted({len(row) for row in rows})
        raise UsageError(
            f"got {len(rows)} rows of {found} values for the metric {name!r} of a probe's record, "
            f"wanted one for each layer and step: {layers} rows of {steps}"
        )
    return [[_number(value) for value in row] for row in rows]


def _number(value: Any) -> float | None:
    """None for what is not finite: a page draws it as nothing read."""
    return float(value) if value is not None and math.isfinite(value) else None
