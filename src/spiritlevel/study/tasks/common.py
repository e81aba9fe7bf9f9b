"""What several tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spiritlevel.data import Images, Prepared, prepare
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, init_he_, init_normal_, init_xavier_, zero_branches_

__all__ = ["build", "initialise", "seeded", "smoothed", "steps_to", "tail_mean", "training_images"]

SMOOTH = 20
"""Batches in the running mean by which a training accuracy is judged."""


def seeded(seed: int) -> None:
    """Initial weights and all other draws of a cell come from its seed."""
    torch.manual_seed(seed)


def build(name: str, images: Prepared, *, norm: str, init: str, **options: Any) -> nn.Module:
    """A control of `models/plain.py` that fits the images, initialised as `init` says."""
    if "mlp" in name or "linear" in name:
        options["image_size"] = images.size
    model = create_model(
        name, num_classes=images.num_classes, in_chans=images.channels, norm=norm, **options
    )
    return initialise(model, init)


def initialise(model: nn.Module, init: str) -> nn.Module:
    """By `init`: `default` (torch's), `xavier`, `he`, `he*2`, `normal*0.01` or `he+zero`.

    `he*2` is He with every weight doubled, `normal*0.01` is N(0, 0.01^2); `he+zero` starts each
    residual branch at zero, as Fixup and SkipInit do.
    """
    kind, _, number = init.partition("*")
    if kind == "he":
        return init_he_(model, float(number or 1))
    if kind == "normal":
        return init_normal_(model, float(number))
    if init == "xavier":
        return init_xavier_(model)
    if init == "he+zero":
        return zero_branches_(init_he_(model))
    if init == "default":
        return model
    raise UsageError(
        f"got init {init!r}; wanted default, xavier, he, he*NUMBER, he+zero or normal*NUMBER"
    )


def training_images(images: Images, size: int, *, standardise: bool = True) -> Prepared:
    """The images at `size` px, or at their own size where that is smaller."""
    return prepare(images, size=min(size, images.size), standardise=standardise)


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
