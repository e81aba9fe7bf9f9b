"""What a source finds, before it is split, shuffled and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spiritlevel.data.images import MIN_SIDE, Images, resize, shuffled, stratified
from spiritlevel.errors import DataError

__all__ = ["Pile", "Raw", "Stack", "check_memory", "gather", "labels_of"]

_PART = 1000
"""Rows that a Stack hands over at a time: resizing holds them as float32."""
_MAX_BYTES = 2 * 1024**3
"""Of all pixels together."""


class Pile(Protocol):
    """Pixels of one size that are decoded on the way out."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, S, S)."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the images; complete once all rows have been read."""

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        """The images of these rows in this order, uint8 (n, C, S, S) at a time."""


class Stack:
    """Pixels that are in memory already: x uint8 (N, C, H, W), brought to `image_size`."""

    def __init__(self, x_NCHW: Tensor, image_size: int | None, *notes: str) -> None:
        n, channels, height, width = x_NCHW.shape
        side = image_size or max(MIN_SIDE, min(height, width))
        self.shape = n, channels, side, side
        self.notes = notes
        if (height, width) != (side, side):
            self.notes += (f"{width}x{height} pixels brought to {side}x{side} (bilinear)",)
        self._x = x_NCHW
        check_memory(self.shape)

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        for start in range(0, len(rows), _PART):
            yield resize(self._x[rows[start : start + _PART]], self.shape[-1])


@dataclass(frozen=True, eq=False)
class Raw:
    """Images in the order of their source, with labels y int64 (N,)."""

    name: str
    pixels: Pile
    y: Tensor
    n_train: int | None
    """So many come first and are to train on; None: a fifth of each class is drawn to test on."""
    classes: tuple[str, ...]
    origin: str
    licence: str

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Row numbers (train, test), each in random order. Raises DataError."""
        self._check_counts()
        if self.n_train is None:
            return stratified(self.y, seed=seed)
        return shuffled(len(self.y), self.n_train, seed=seed)

    def _check_counts(self) -> None:
        fewest = 2 if self.n_train is None else 1
        counts = torch.bincount(self.y[: self.n_train], minlength=len(self.classes)).tolist()
        present = {name: n for name, n in zip(self.classes, counts, strict=True) if n}
        if len(present) < 2:
            got = f"one class, {next(iter(present))!r}," if present else "no images"
            raise DataError(
                f"got {got} to train on in {self.name}; wanted two or more classes; add images"
            )
        if scarce := [name for name, n in present.items() if n < fewest]:
            raise DataError(
                f"got class {scarce[0]!r} of {self.name} with one image, "
                "wanted 2 or more, one of them to test on; add images or remove the class"
            )
        if self.n_train == len(self.y):
            raise DataError(
                f"got {self.name} without an image to test on; wanted one or more; add test images"
            )


def gather(raw: Raw, *, seed: int) -> Images:
    """All images in memory."""
    train, test = raw.split(seed)
    train_x, test_x = _joined(raw.pixels, train), _joined(raw.pixels, test)
    return Images(
        name=raw.name,
        train_x=train_x,
        train_y=raw.y[train],
        test_x=test_x,
        test_y=raw.y[test],
        classes=raw.classes,
        origin=raw.origin,
        licence=raw.licence,
        notes=raw.pixels.notes,
    )


def _joined(pixels: Pile, rows: Tensor) -> Tensor:
    x = torch.empty(len(rows), *pixels.shape[1:], dtype=torch.uint8)
    start = 0
    for part in pixels.parts(rows):
        x[start : start + len(part)] = part
        start += len(part)
    return x


def labels_of(values: Tensor, n_classes: int, where: str) -> Tensor:
    """`values` as int64, each below `n_classes`. Raises DataError, which names `where`."""
    y = values.long()
    wrong = (y < 0) | (y >= n_classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"got label {int(y[row])} at row {row} of {where}, wanted 0 to {n_classes - 1}; "
            "repair or replace the file"
        )
    return y


def check_memory(shape: tuple[int, int, int, int]) -> None:
    """Raises DataError for more pixels than a run could hold."""
    n, channels, side, _ = shape
    if (total := n * channels * side**2) > _MAX_BYTES:
        raise DataError(
            f"got {n:,} images of {side}x{side} pixels, {total / 1024**3:.1f} GiB in memory; "
            f"wanted {_MAX_BYTES // 1024**3} GiB or less; make the images smaller or take fewer"
        )
