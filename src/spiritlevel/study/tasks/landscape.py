"""The loss along the gradient, and the shift of definition 2.1, while a network trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from statistics import median
from typing import Any

from torch import Tensor

from spiritlevel.data import Images
from spiritlevel.probe import ShiftReading, along_gradient, covariate_shift, weight_layers
from spiritlevel.study.networks import build
from spiritlevel.study.tasks.common import compact, feed, final_loss, run, seeded

__all__ = ["evenly", "landscape"]

ETAS = (0.5, 1.0, 2.0, 4.0)
"""Step lengths along -g as multiples of the learning rate: Santurkar et al. 2018, section 3.2."""
_SHIFT = tuple(field.name for field in fields(ShiftReading))
_MOST_LAYERS = 8
"""Each costs a forward and backward pass a reading."""


def landscape(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Settings: network, norm, init, lr, seed, steps, every, batch_size, size."""
    data = feed(images, settings)
    seeded(settings["seed"])
    model = build(settings, data)
    learning = [name for name, m in weight_layers(model).items() if m.weight.requires_grad]
    chosen = evenly(learning[1:], _MOST_LAYERS)
    readings: list[dict[str, float]] = []
    shifts: list[list[ShiftReading]] = []
    steps: list[int] = []

    def observe(step: int, x: Tensor, y: Tensor) -> None:
        lr = settings["lr"]
        reading = along_gradient(model, x, y, steps=[eta * lr for eta in ETAS])
        readings.append(vars(reading) | {"beta_norm2": reading.beta * reading.weight_norm2})
        shifts.append([*covariate_shift(model, x, y, lr=lr, layers=chosen).values()])
        steps.append(step)

    curve = run(model, data, settings, observe)
    by_layer = [
        {name: _middle(getattr(reading, name) for reading in of_layer) for name in _SHIFT}
        for of_layer in zip(*shifts, strict=True)
    ]
    return {
        "loss": compact(curve.loss),
        "diverged_at": curve.diverged_at,
        "final_loss": final_loss(curve),
        "classes": data.num_classes,
        "steps": steps,
        "over_time": {name: [r[name] for r in readings] for name in readings[0]},
        "median": {name: _middle(r[name] for r in readings) for name in readings[0]},
        "shift_layers": chosen,
        "shift": by_layer,
        "shift_median": {name: _middle(layer[name] for layer in by_layer) for name in _SHIFT},
    }


def evenly(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of them, evenly spread, the last among them."""
    if len(names) <= most:
        return list(names)
    return [names[round((i + 1) * len(names) / most) - 1] for i in range(most)]


def _middle(values: Iterable[float]) -> float:
    """The median of what is defined: a gradient of length 0 has no direction. NaN if one overflows.

    Sorting would put a NaN anywhere.
    """
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known and all(map(math.isfinite, known)) else math.nan
