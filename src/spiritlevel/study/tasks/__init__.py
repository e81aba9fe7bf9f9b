"""What a cell can be: a task measures, from its settings and images alone, and gives plain numbers.

A task seeds what it draws from its settings, so that it gives the same numbers in any process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spiritlevel.data import Images
from spiritlevel.study.tasks import depth, drift, examples, gap, ghostnet, invariance, noise, sweep

__all__ = ["COST", "TASKS", "Task"]

Task = Callable[[Mapping[str, Any], Images], dict[str, Any]]

TASKS: dict[str, Task] = {
    "drift": drift.drift,
    "sweep": sweep.sweep,
    "landscape": sweep.landscape,
    "depth": depth.depth,
    "deep": depth.deep,
    "noise": noise.noise,
    "gap": gap.gap,
    "invariance": invariance.invariance,
    "ghostnet": ghostnet.ghostnet,
    "example-shift": examples.shift,
    "example-scale": examples.scale,
    "example-bell": examples.bell,
}

# Rough seconds of one core for 100 steps in preset `quick`: the longest start first, and the
# progress bar weighs by it. Nothing else depends on it.
COST = {
    "ghostnet": 15.0,
    "noise": 5.0,
    "landscape": 3.0,
    "example-bell": 2.0,
    "sweep": 1.6,
    "deep": 1.2,
    "gap": 0.3,
    "drift": 0.25,
}
