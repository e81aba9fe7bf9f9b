"""Norm by learning rate by seed on a VGG-like net, and the loss along the gradient in training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from torch import Tensor, nn

from spiritlevel.data import Images, Prepared
from spiritlevel.probe import along_gradient, covariate_shift
from spiritlevel.study.tasks.common import build, seeded, tail_mean, training_images
from spiritlevel.train import Curve, Observer, score, train

__all__ = ["landscape", "sweep"]

ETAS = (0.5, 1.0, 2.0, 4.0)
"""Step lengths along -g as multiples of the learning rate: Santurkar et al. 2018, section 3.2."""


def sweep(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Settings: model, norm, init, lr, seed, steps, batch_size, size."""
    data, model = _start(settings, images)
    curve = _run(settings, data, model)
    return {
        "loss": curve.loss,
        "accuracy": curve.accuracy,
        "diverged_at": curve.diverged_at,
        "final_loss": None if curve.diverged_at is not None else tail_mean(curve.loss),
        "classes": data.num_classes,
        "final_accuracy": tail_mean(curve.accuracy),
        "test_accuracy": score(model, data.test_x, data.test_y).accuracy,
        "test_accuracy_batch": score(model, data.test_x, data.test_y, training=True).accuracy,
    }


def landscape(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """As `sweep`, reading the loss along the gradient and the shift of definition 2.1 on the way.

    Settings: those of `sweep`, and every.
    """
    data, model = _start(settings, images)
    readings: list[dict[str, float]] = []
    shifts: list[list[tuple[float, float, float]]] = []
    steps: list[int] = []

    def observe(step: int, x: Tensor, y: Tensor) -> None:
        lr = settings["lr"]
        reading = along_gradient(model, x, y, steps=[eta * lr for eta in ETAS])
        readings.append(vars(reading) | {"beta_norm2": reading.beta * reading.weight_norm2})
        shift = covariate_shift(model, x, y, lr=lr)
        shifts.append([(s.l2, s.cosine, s.relative) for s in shift.values()])
        steps.append(step)

    curve = _run(settings, data, model, observe)
    by_layer = [
        [_middle(step[i][q] for step in shifts) for q in range(3)] for i in range(len(shifts[0]))
    ]
    return {
        "loss": curve.loss,
        "diverged_at": curve.diverged_at,
        "final_loss": None if curve.diverged_at is not None else tail_mean(curve.loss),
        "classes": data.num_classes,
        "steps": steps,
        "over_time": {name: [r[name] for r in readings] for name in readings[0]},
        "median": {name: _middle(r[name] for r in readings) for name in readings[0]},
        "shift": [
            dict(zip(("l2", "cosine", "relative"), layer, strict=True)) for layer in by_layer
        ],
        "shift_median": {
            "l2": _middle(layer[0] for layer in by_layer),
            "cosine": _middle(layer[1] for layer in by_layer),
            "relative": _middle(layer[2] for layer in by_layer),
        },
    }


def _middle(values: Iterable[float]) -> float:
    """The median; NaN where a value is not finite, which sorting would put anywhere."""
    known = list(values)
    return median(known) if all(map(math.isfinite, known)) else math.nan


def _start(settings: Mapping[str, Any], images: Images) -> tuple[Prepared, nn.Module]:
    data = training_images(images, settings["size"])
    seeded(settings["seed"])
    return data, build(settings["model"], data, norm=settings["norm"], init=settings["init"])


def _run(
    settings: Mapping[str, Any], data: Prepared, model: nn.Module, observe: Observer | None = None
) -> Curve:
    return train(
        model,
        data.train_x,
        data.train_y,
        lr=settings["lr"],
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        observe=observe,
        every=settings.get("every", 1),
    )
