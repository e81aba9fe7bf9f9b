"""What a source hands over, and what all sources share: the split and the size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MIN_SIDE", "Images", "resize", "shuffled", "stratified"]

MIN_SIDE = 32
"""Pixels. The convolutional nets here halve their input up to five times."""


@dataclass(frozen=True, eq=False)
class Images:
    """Square images to train and to test on: x uint8 (N, C, S, S) of C = 1 or 3, y int64 (N,).

    Rows are in random order, so that any first part is a mix of all classes. The tensors of a large
    set are mapped from a file, so that processes share its pages.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    """The name of each label. A folder's are user text, of any script."""
    origin: str
    """What the images are and who made them, for a reader."""
    licence: str
    """Under what terms, as far as it is known."""
    notes: tuple[str, ...]
    """What was done to the images on the way in, in plain English."""

    @property
    def channels(self) -> int:
        return self.train_x.shape[1]

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.train_x.shape[-1]

    @property
    def fingerprint(self) -> str:
        """sha256 of all four tensors, by which a resumed run tells that its images are the same."""
        digest = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """All but the pixels, ready for JSON."""
        return {
            "name": self.name,
            "origin": self.origin,
            "licence": self.licence,
            "notes": list(self.notes),
            "classes": list(self.classes),
            "counts": {"train": len(self.train_y), "test": len(self.test_y)},
            "channels": self.channels,
            "size": self.size,
            "fingerprint": self.fingerprint,
        }


def stratified(y: Tensor, *, seed: int, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Row numbers (train, test) in random order: `share` of each class of y (N,) is for testing.

    A class of few rows has one for testing.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    is_test = torch.zeros(len(y), dtype=torch.bool)
    for label in set(y.tolist()):
        rows = order[y[order] == label]
        is_test[rows[: max(1, round(len(rows) * share))]] = True
    return order[~is_test[order]], order[is_test[order]]


def shuffled(n: int, n_train: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers 0 to n_train and n_train to n, each part in random order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[order < n_train], order[order >= n_train]


def resize(x_NCHW: Tensor, side: int) -> Tensor:
    """uint8 images brought to `side` x `side` pixels: bilinear, antialiased where they shrink."""
    if x_NCHW.shape[-2:] == (side, side):
        return x_NCHW
    # In float32: the uint8 kernel rounds its weights too.
    resized = F.interpolate(x_NCHW.float(), (side, side), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)
