"""Images as float32, made from bytes only when they are asked for."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Pixels", "moments"]

_CHUNK = 64 * 2**20
"""Bytes of float32 that `moments` holds at a time."""

Rows = Tensor | slice
"""Row numbers (int64), a mask (bool), or a slice."""


class Pixels:
    """float32 (N, C, size, size), read as `x[rows]`; held as the uint8 (N, C, S, S) it is made of.

    Pixels are scaled to [0, 1], shrunk by adaptive average pooling (32 to 16: the mean of each
    2x2), and (x - mean) / std per channel where these are given, float64 (C,). Each read is a new
    tensor; `x[:]` is all of them.
    """

    dtype = torch.float32

    def __init__(
        self, x_NCHW: Tensor, size: int, mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        self._bytes, self._size = x_NCHW, size
        self._mean, self._std = (
            None if m is None else m.float().view(1, -1, 1, 1) for m in (mean, std)
        )

    def __len__(self) -> int:
        return len(self._bytes)

    def to(self, device: torch.device) -> Pixels:
        """The same, held and read on `device`."""
        moved = copy(self)
        moved._bytes = self._bytes.to(device)
        moved._mean, moved._std = (
            None if m is None else m.to(device) for m in (self._mean, self._std)
        )
        return moved

    @property
    def nbytes(self) -> int:
        """Of the images as they are held."""
        return self._bytes.nbytes

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self._bytes.shape[:2], self._size, self._size))

    def __getitem__(self, rows: Rows) -> Tensor:
        if isinstance(rows, Tensor) and rows.dtype == torch.int64:
            rows = rows.to(self._bytes.device)
            x = self._bytes.index_select(0, rows)  # copies whole images; indexing goes by elements
        else:
            x = self._bytes[rows]
        x = x.float().div_(255)
        if self._size != x.shape[-1]:
            x = F.adaptive_avg_pool2d(x, self._size)
        if self._mean is not None:
            x.sub_(self._mean)
        if self._std is not None:
            x.div_(self._std)
        return x


def moments(x: Pixels) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation per channel, float64 (C,), a part of x at a time."""
    n, channels, *sides = x.shape
    step = max(1, _CHUNK // (4 * channels * sides[0] * sides[1]))
    count = n * sides[0] * sides[1]
    mean, variance = torch.zeros(2, channels, dtype=torch.float64)
    for start in range(0, n, step):
        mean += x[start : start + step].sum((0, 2, 3), dtype=torch.float64)
    mean /= count
    centre = mean.float().view(1, -1, 1, 1)
    for start in range(0, n, step):
        part = x[start : start + step].sub_(centre).square_()
        variance += part.sum((0, 2, 3), dtype=torch.float64)
    return mean, (variance / count).sqrt()
