"""Images as a network's input, and the order in which a run sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from spiritlevel.data.images import Images
from spiritlevel.data.pixels import Pixels, moments
from spiritlevel.errors import UsageError

__all__ = ["Prepared", "batches", "prepare"]

_CONSTANT = 1e-6
"""A deviation below it is rounding: pooling in float32 leaves a constant channel one near 1e-7."""

_measured: WeakKeyDictionary[Images, dict[int, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
"""Moments by images and size: many short runs on the same images measure them once."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network's input: x float32 (N, C, size, size) when read, y int64 (N,)."""

    train_x: Pixels
    train_y: Tensor
    test_x: Pixels
    test_y: Tensor
    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    """Subtracted per channel; measured: of the training pixels in [0, 1] at this size."""
    std: tuple[float, ...]
    """Divided by per channel; measured: population standard deviation of the same pixels."""

    @property
    def divisor(self) -> tuple[float, ...]:
        """`std`, but 1 for a constant channel, which is only centred."""
        return tuple(each if each > _CONSTANT else 1.0 for each in self.std)


def prepare(
    images: Images,
    *,
    size: int | None = None,
    standardise: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Prepared:
    """Scale pixels to [0, 1], shrink to `size` x `size`, subtract the mean, divide by the s.d.

    Shrinking is adaptive average pooling (32 to 16: the mean of each 2x2). `mean` and `std`, of
    pixels in [0, 1], have one number a channel; by default they are those of the training images.
    A constant channel is only centred. `standardise=False` leaves values in [0, 1]. Raises
    UsageError.
    """
    side = images.size if size is None else size
    if not 1 <= side <= images.size:
        raise UsageError(
            f"got size {side}, wanted 1 to {images.size}, the pixels a side of {images.name}; "
            "images can be shrunk, not enlarged"
        )
    centre, deviation = _given("mean", mean, images), _given("std", std, images)
    if centre is None or deviation is None:
        measured = _moments(images, side)
        centre = measured[0] if centre is None else centre
        deviation = measured[1] if deviation is None else deviation
    scale = torch.where(deviation > _CONSTANT, deviation, 1.0)
    by = (centre, scale) if standardise else ()
    return Prepared(
        train_x=Pixels(images.train_x, side, *by),
        train_y=images.train_y,
        test_x=Pixels(images.test_x, side, *by),
        test_y=images.test_y,
        num_classes=len(images.classes),
        channels=images.channels,
        size=side,
        mean=tuple(centre.tolist()),
        std=tuple(deviation.tolist()),
    )


def _given(name: str, values: Sequence[float] | None, images: Images) -> Tensor | None:
    """float64 (C,), or None. Raises UsageError."""
    if values is None:
        return None
    low = _CONSTANT if name == "std" else -math.inf
    if len(values) != images.channels or not all(low < value < math.inf for value in values):
        above = f" above {_CONSTANT:g}" if name == "std" else ""
        raise UsageError(
            f"got {name} {', '.join(map(str, values)) or 'without a number'}; wanted "
            f"{images.channels} finite number(s){above}, one for each channel of {images.name}, "
            "of pixels in [0, 1]"
        )
    return torch.tensor(values, dtype=torch.float64)


def _moments(images: Images, side: int) -> tuple[Tensor, Tensor]:
    by_side = _measured.setdefault(images, {})
    if side not in by_side:
        by_side[side] = moments(Pixels(images.train_x, side))
    return by_side[side]


def batches(n: int, batch_size: int, steps: int, *, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` tensors of `batch_size` row numbers below n, int64, each epoch in a new random order.

    An epoch's incomplete last batch is dropped. Raises UsageError.
    """
    if not 1 <= batch_size <= n:
        raise UsageError(
            f"got batch size {batch_size}, wanted 1 to {n}, the number of training images; "
            "take a smaller batch or more images"
        )
    return _batches(n, batch_size, steps, generator)


def _batches(n: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    batches_per_epoch = n // batch_size
    for step in range(steps):
        position = step % batches_per_epoch
        if position == 0:
            rows = torch.randperm(n, generator=generator)
        yield rows[position * batch_size : (position + 1) * batch_size]
