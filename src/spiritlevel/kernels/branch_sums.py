"""A sum of batch norms in training: what is known of each channel, and what goes back through it.

Of each branch (n) and channel (C) a number in float64; nothing here has the size of an activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Back", "Norms", "back_through", "merged_parts", "norms_of"]


class Norms(NamedTuple):
    """Mean and biased variance of the batch, weight and bias, (n, C); eps, (n, 1)."""

    mean: Tensor
    var: Tensor
    weight: Tensor
    bias: Tensor
    eps: Tensor

    def deviation(self) -> Tensor:
        return (self.var + self.eps).sqrt()

    def scale(self) -> Tensor:
        return self.weight / self.deviation()

    def shift(self) -> Tensor:
        """What the sum of all adds to the sum of what they scale, (C,)."""
        return (self.bias - self.scale() * self.mean).sum(0)


class Back(NamedTuple):
    """Of a gradient g that reaches the sum: the gradients of weight and bias, (n, C); and of what
    is before each norm, scale g + k2 (c - mean) + k1."""

    weight: Tensor
    bias: Tensor
    k1: Tensor
    k2: Tensor


def norms_of(
    mean: Tensor,
    var: Tensor,
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    eps: Sequence[float],
) -> Norms:
    zero = torch.zeros(mean.shape[1], dtype=torch.float32)
    one = zero + 1
    weight = torch.stack([one if w is None else w for w in weights])
    bias = torch.stack([zero if b is None else b for b in biases])
    return Norms(mean, var, weight.double(), bias.double(), mean.new_tensor(eps)[:, None])


def back_through(norms: Norms, total: Tensor, products: Tensor, count: int) -> Back:
    """From the sums of g, (C,), and of g (c - mean), (n, C), over so many values."""
    deviation = norms.deviation()
    scale, weight = norms.weight / deviation, products / deviation
    k2 = -scale * weight / (count * deviation)
    return Back(weight, total.expand_as(weight), -scale * total / count, k2)


def merged_parts(parts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all, from means and squares (parts, n, 2, C) of so many values
    (parts,), as Chan does."""
    count = counts[:, None, None]
    means, squares = parts.unbind(2)
    mean = (count * means).sum(0) / counts.sum()
    return mean, (squares + count * (means - mean).square()).sum(0) / counts.sum()
