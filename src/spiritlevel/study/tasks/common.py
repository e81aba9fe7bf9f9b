"""What several tasks share."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from spiritlevel.data import Images, Prepared, prepare
from spiritlevel.study.networks import network
from spiritlevel.train import Curve, Observer, train

__all__ = [
    "SMOOTH",
    "compact",
    "feed",
    "final_loss",
    "run",
    "seeded",
    "smoothed",
    "steps_to",
    "tail_mean",
]

SMOOTH = 20
"""Batches in the running mean by which a training accuracy is judged."""


def seeded(seed: int) -> None:
    """Initial weights and all other draws of a cell come from its seed, also in a user's code."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def feed(images: Images, settings: Mapping[str, Any]) -> Prepared:
    """The images at `size` px, or at their own size where that is smaller.

    Standardised by `mean` and `std` where these are set, unless the network takes pixels in [0, 1].
    """
    name = settings.get("network")
    return prepare(
        images,
        size=min(settings["size"], images.size),
        standardise=name is None or network(name).standardise,
        mean=settings.get("mean"),
        std=settings.get("std"),
    )


def run(
    model: nn.Module,
    images: Prepared,
    settings: Mapping[str, Any],
    observe: Observer | None = None,
) -> Curve:
    """Train as settings say: lr, steps, batch_size, seed, and, where set, every and augment."""
    return train(
        model,
        images.train_x,
        images.train_y,
        lr=settings["lr"],
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        momentum=settings.get("momentum", 0.0),
        augment=settings.get("augment", False),
        observe=observe,
        every=settings.get("every", 1),
    )


def final_loss(curve: Curve) -> float | None:
    """The mean of the last training losses; None where the run diverged."""
    return None if curve.diverged_at is not None else tail_mean(curve.loss)


def tail_mean(values: Sequence[float], count: int = SMOOTH) -> float:
    """The mean of the last `count`."""
    last = values[-count:]
    return sum(last) / len(last)


def smoothed(values: Sequence[float], count: int = SMOOTH) -> list[float]:
    """The running mean of the last `count`, from the first full window on."""
    return [sum(values[end - count : end]) / count for end in range(count, len(values) + 1)]


def steps_to(accuracy: Sequence[float], target: float, count: int = SMOOTH) -> int | None:
    """Steps until the running mean of `accuracy` reaches `target`, or None."""
    for end, value in enumerate(smoothed(accuracy, count), count):
        if value >= target:
            return end
    return None


def compact(value: Any) -> Any:
    """Floats at any depth to six significant digits, which float32 hardly exceeds."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list | tuple):
        return [compact(item) for item in value]
    return value
