"""What a pass has read of its batches: enough to notice that another has read other data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spiritlevel.lent.feeding import tensors_in

__all__ = ["Reading"]


class Reading:
    """Sums over all tensors, so that the same data in another order are the same."""

    def __init__(self) -> None:
        self.batches = 0
        self.total = self.size = 0.0

    def add(self, batch: Any) -> None:
        self.batches += 1
        for tensor in tensors_in(batch):
            if tensor.layout is torch.strided and not tensor.is_quantized:
                self._add(tensor.detach())

    def _add(self, tensor: Tensor) -> None:
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        if tensor.device.type == "mps":  # has no float64
            tensor = tensor.cpu()
        if not tensor.is_floating_point():
            total = float(tensor.sum(dtype=torch.int64))
            size = abs(total)
        else:
            total, size = _sums(tensor)
            if not math.isfinite(total + size):  # as the target of a sample that has none
                total, size = _sums(tensor.nan_to_num(0.0, 0.0, 0.0))
        self.total += total
        self.size += size

    def same(self, other: Reading) -> bool:
        if self.batches != other.batches:
            return False
        off = max(abs(self.total - other.total), abs(self.size - other.size))
        return off <= 1e-12 * max(self.size, other.size)

    def __str__(self) -> str:
        return f"{self.batches:,} with values that add up to {self.total:.9g}"


def _sums(tensor: Tensor) -> tuple[float, float]:
    """Of the values and of their magnitudes, without a copy."""
    if tensor.element_size() == 1:
        tensor = tensor.float()
    size = torch.linalg.vector_norm(tensor, 1, dtype=torch.float64)
    return float(tensor.sum(dtype=torch.float64)), float(size)
