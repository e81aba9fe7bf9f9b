"""What a cell can be: a task measures, from its settings and images alone, and gives plain numbers.

A task seeds what it draws from its settings, so that it gives the same numbers in any process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spiritlevel.data import Images
from spiritlevel.study.tasks import (
    depth,
    examples,
    gap,
    invariance,
    landscape,
    noise,
    scaling,
    training,
)

__all__ = ["TASKS", "Task"]

Task = Callable[[Mapping[str, Any], Images], dict[str, Any]]

TASKS: dict[str, Task] = {
    "train": training.training,
    "landscape": landscape.landscape,
    "depth": depth.depth,
    "noise": noise.noise,
    "gap": gap.gap,
    "invariance": invariance.invariance,
    "scaling": scaling.scaling,
    "example-shift": examples.shift,
    "example-scale": examples.scale,
    "example-bell": examples.bell,
}
