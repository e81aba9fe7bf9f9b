"""Images as a network's input, and the order in which a run sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.data.images import Images
from spiritlevel.errors import UsageError

__all__ = ["Prepared", "batches", "prepare"]

_CONSTANT = 1e-6
"""A deviation below it is rounding: pooling in float32 leaves a constant channel one near 1e-7."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network's input: x float32 (N, C, size, size), y int64 (N,)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    """Of the training pixels in [0, 1] at this size, per channel."""
    std: tuple[float, ...]
    """Population standard deviation of the same pixels."""


def prepare(images: Images, *, size: int | None = None, standardise: bool = True) -> Prepared:
    """Scale pixels to [0, 1], shrink to `size` x `size`, subtract the mean, divide by the s.d.

    Shrinking is adaptive average pooling (32 to 16: the mean of each 2x2). Mean and s.d. are those
    of the training images, one for each channel; a constant channel is only centred.
    `standardise=False` leaves values in [0, 1]. Raises UsageError for a `size` above the images'.
    """
    side = images.size if size is None else size
    if not 1 <= side <= images.size:
        raise UsageError(
            f"got size {side}, wanted 1 to {images.size}, the pixels a side of {images.name}; "
            "images can be shrunk, not enlarged"
        )
    train_x, test_x = _pooled(images.train_x, side), _pooled(images.test_x, side)
    mean, std = _moments(train_x)
    if standardise:
        scale = torch.where(std > _CONSTANT, std, 1.0)
        for x in (train_x, test_x):
            x.sub_(mean).div_(scale)
    return Prepared(
        train_x=train_x,
        train_y=images.train_y,
        test_x=test_x,
        test_y=images.test_y,
        num_classes=len(images.classes),
        channels=images.channels,
        size=side,
        mean=tuple(mean.flatten().tolist()),
        std=tuple(std.flatten().tolist()),
    )


def _pooled(x_NCHW: Tensor, side: int) -> Tensor:
    """uint8 (N, C, S, S) as float32 (N, C, side, side) in [0, 1]; always a copy."""
    x = x_NCHW.float().div_(255)
    return x if side == x.shape[-1] else F.adaptive_avg_pool2d(x, side)


def _moments(x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation per channel, (1, C, 1, 1), summed in float64."""
    axes = (0, 2, 3)
    mean = x_NCHW.mean(axes, keepdim=True, dtype=torch.float64)
    variance = (x_NCHW - mean.float()).square_().mean(axes, keepdim=True, dtype=torch.float64)
    return mean, variance.sqrt()


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
