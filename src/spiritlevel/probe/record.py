"""A probe's readings and counts as plain data, for the page."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from spiritlevel.probe.counting import OTHER, LayerCounts, Mode

if TYPE_CHECKING:
    from spiritlevel.probe.watch import Probe

__all__ = ["record_of"]


def record_of(probe: Probe) -> dict[str, Any]:
    """What `report.probe_page` draws: lists, texts and numbers; None where nothing was read."""
    readings, counts, cost = probe.readings, probe.counts, probe.overhead
    metrics = {name: readings.matrix(name) for name in readings.metrics}
    for end in ("input", "output"):  # a deviation has the unit of what it is the deviation of
        variances = metrics.pop(f"{end}_var")
        metrics[f"{end}_std"] = np.sqrt(np.maximum(variances, 0.0)).tolist()
    return {
        "title": f"{type(probe.model).__name__} while it trains",
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
        "overhead": {
            "share": cost.share,
            "seconds": cost.seconds,
            "sampled_ms": cost.sampled_ms,
            "step_ms": cost.step_ms,
        },
        "unseen": probe.unseen,
        "notes": [],
        "decimated": readings.decimated,
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
