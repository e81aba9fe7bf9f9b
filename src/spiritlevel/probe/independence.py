"""Whether batches are drawn at random: analysis of variance over the samples' own means.

The positions of an image are not independent, its mean is one number. In eval mode a sample's mean
does not depend on its batch-mates. So if samples come to their batches by chance, the variance
between the batches' means over that within batches follows Fisher's F, whatever the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Spread", "f_tail"]


@dataclass(frozen=True)
class Spread:
    """The samples' own means of one layer's input, by batch."""

    sizes: tuple[int, ...]
    """Samples in each of B batches."""
    mean: Tensor
    """(B, C): of the samples' means."""
    squares: Tensor
    """(B, C): the sum of their squared differences from it."""

    def of(self, batches: list[int]) -> Spread:
        """Of some of the batches only."""
        sizes = tuple(self.sizes[place] for place in batches)
        return Spread(sizes, self.mean[batches], self.squares[batches])

    @property
    def degrees(self) -> tuple[int, int]:
        """Of freedom: between and within batches."""
        return len(self.sizes) - 1, sum(self.sizes) - len(self.sizes)

    @property
    def within(self) -> Tensor:
        """(C,): the unbiased variance within batches."""
        return self.squares.sum(0) / max(self.degrees[1], 1)

    @property
    def ratio(self) -> Tensor:
        """F of each channel (C,); 1 where samples do not differ at all."""
        sizes = torch.tensor(self.sizes, dtype=self.mean.dtype)[:, None]
        grand = (self.mean * sizes).sum(0) / sizes.sum()
        between = ((self.mean - grand).square() * sizes).sum(0) / max(self.degrees[0], 1)
        # Rounding is no variance: a dead channel holds one value, to float32's last digit.
        floor = (grand.abs() * 1e-6).square() + 1e-30
        alive = torch.maximum(within := self.within, between) > floor
        return torch.where(alive, between / within.clamp(min=1e-30), 1.0)

    @property
    def chance(self) -> float:
        """That the largest F comes of chance, times the channels (Bonferroni), at most 1."""
        between, within = self.degrees
        if between < 1 or within < 1:
            return 1.0
        ratio = self.ratio
        return min(1.0, len(ratio) * f_tail(float(ratio.max()), between, within))


def f_tail(ratio: float, between: int, within: int) -> float:
    """P(F > ratio) for so many degrees of freedom."""
    if not ratio > 0:
        return 1.0
    if math.isinf(ratio):
        return 0.0
    return _incomplete_beta(within / 2, between / 2, within / (within + between * ratio))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), regularized, by its continued fraction (Numerical Recipes, section 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the mirrored one converges faster
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x) - math.log(a)
    return math.exp(log_front) * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    total = d
    for m in range(1, 1000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + step * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + step / c
            c = c if abs(c) > tiny else tiny
            total *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return total
