"""A probe's readings and counts as plain data, for the page and for a notebook."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from spiritlevel.probe.counting import OTHER, LayerCounts, Mode

if TYPE_CHECKING:
    from spiritlevel.probe.overhead import Overhead
    from spiritlevel.probe.table import Readings
    from spiritlevel.probe.watch import Probe

__all__ = ["latest_of", "record_of"]


def record_of(probe: Probe) -> dict[str, Any]:
    """What `report.probe_page` draws: lists, texts and numbers; None where nothing was read."""
    readings, counts, cost = probe.readings, probe.counts, probe.overhead
    metrics = {name: readings.matrix(name) for name in readings.metrics}
    for end in ("input", "output"):  # a deviation has the unit of what it is the deviation of
        variances = metrics.pop(f"{end}_var")
        metrics[f"{end}_std"] = np.sqrt(np.maximum(variances, 0.0)).tolist()
    return {
        "model": type(probe.model).__name__,
        "every": probe.every,
        "steps": list(readings.steps),
        "layers": [vars(layer) for layer in readings.layers],
        "metrics": {
            name: [[v if math.isfinite(v) else None for v in row] for row in rows]
            for name, rows in metrics.items()
        },
        "counts": {
            "steps": counts.steps,
            "forwards": counts.forwards.total(),
            "backwards": counts.backwards,
            "skipped": counts.skipped,
            "perturbed": counts.perturbed,
        },
        "counters": [{"path": path, **_counters(each)} for path, each in counts.layers.items()],
        "overhead": _cost(cost),
        "unseen": probe.unseen,
        "notes": [],
        "decimated": readings.decimated,
    }


_LATEST = ("z_median", "z_max", "values", "grad_norm", "update_ratio", "dead_share", "non_finite")


def latest_of(probe: Probe) -> dict[str, Any]:
    """What `report.probe_cell` draws: of each norm the last step that read it, and its numbers.

    A step in which a layer took no part has nothing of it but what it has learned.
    """
    readings, cost = probe.readings, probe.overhead
    return {
        "model": type(probe.model).__name__,
        "open": probe.is_open,
        "every": probe.every,
        "steps": probe.counts.steps,
        "samples": len(readings.steps),
        "layers": [
            {"path": layer.path, "type": layer.type, **_last_reading(readings, index)}
            for index, layer in enumerate(readings.layers)
            if layer.kind == "norm"
        ],
        "overhead": _cost(cost),
        "unseen": probe.unseen,
    }


def _last_reading(readings: Readings, index: int) -> dict[str, Any]:
    values: dict[str, float | None] = dict.fromkeys((*_LATEST, "var_ratio"))
    for step, row in readings.backwards(index):
        found = dict(zip(readings.metrics, row, strict=True))
        if not (math.isfinite(found["values"]) or math.isfinite(found["grad_norm"])):
            continue
        values |= {name: _finite(found[name]) for name in _LATEST}
        log_ratio = _finite(found["log_var_ratio_median"])
        if log_ratio is not None:
            values["var_ratio"] = float(np.exp(min(log_ratio, 700.0)))
        return {"step": step, **values}
    return {"step": None, **values}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cost(overhead: Overhead) -> dict[str, float]:
    return {
        "share": overhead.share,
        "seconds": overhead.seconds,
        "sampled_ms": overhead.sampled_ms,
        "step_ms": overhead.step_ms,
    }


def _counters(counted: LayerCounts) -> dict[str, Any]:
    return {
        "forwards_per_step": _told(counted.per_step),
        "writes_train_grad": counted.writes[Mode(True, True)],
        "writes_train_no_grad": counted.writes[Mode(True, False)],
        "writes_eval": counted.writes[Mode(False, True)] + counted.writes[Mode(False, False)],
        "recomputed": counted.recomputed,
        "batch_size": _told(counted.batch_sizes),
        "values": _told(counted.values),
    }


def _told(counter: Counter[int]) -> str:
    """The commonest first: 64 (781 times), 32 (once)."""
    found = [
        f"{'others' if value == OTHER else f'{value:,}'} ({_times(times)})"
        for value, times in counter.most_common(4)
    ]
    if len(counter) == 1:
        found = [f"{next(iter(counter)):,}"]
    return ", ".join(found) + (", …" if len(counter) > 4 else "")


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n:,} times"
