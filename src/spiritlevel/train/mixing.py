"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): batches blended with themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mixing", "draw_mixing", "mix"]


@dataclass(frozen=True)
class Mixing:
    """How a batch is blended with itself: what `draw_mixing` drew."""

    other: Tensor
    """Of each image, the row of the one it is blended with: int64 (N,)."""
    share: float
    """Of the own class in the loss; the rest is the other's."""
    box: tuple[slice, slice] | None = None
    """Rows and columns that the other takes; None: both are seen everywhere."""

    def blend(self, own: Tensor, other: Tensor) -> Tensor:
        """Images (N, C, H, W) and their others -> blended images, new."""
        if self.box is None:
            return self.share * own + (1 - self.share) * other
        blended = own.clone()
        blended[..., self.box[0], self.box[1]] = other[..., self.box[0], self.box[1]]
        return blended


def draw_mixing(
    n: int,
    sides: tuple[int, int],
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    generator: torch.Generator,
) -> Mixing:
    """For n images of `sides` (H, W), from a CPU's generator.

    With `mixup` the share is drawn from Beta(mixup, mixup). With `cutmix` the other takes its place
    in a rectangle whose sides are sqrt(1 - share) of the image's, the share from Beta(cutmix,
    cutmix); at a border it loses what lies outside, and the share is that of what is left. Where
    both are above 0, a coin decides; one of them has to be.
    """
    coin = torch.rand((), generator=generator).item() < 0.5
    other = torch.randperm(n, generator=generator)
    if cutmix and (coin or not mixup):
        box = _box(sides, _beta(cutmix, generator), generator)
        left_out = math.prod(side.stop - side.start for side in box)
        return Mixing(other, 1 - left_out / math.prod(sides), box)
    return Mixing(other, _beta(mixup, generator))


def mix(
    x: Tensor, *, mixup: float = 0.0, cutmix: float = 0.0, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """x (N, C, H, W) -> blended images of that shape, the others' row numbers (N,), the own share.

    Each image is blended with another of the batch, as `draw_mixing` has it; the loss of its
    prediction is then

        share * loss(own class) + (1 - share) * loss(the other's class)
    """
    sides = x.shape[-2], x.shape[-1]
    drawn = draw_mixing(len(x), sides, mixup=mixup, cutmix=cutmix, generator=generator)
    other = drawn.other.to(x.device)
    return drawn.blend(x, x[other]), other, drawn.share


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Drawn from Beta(alpha, alpha), as X / (X + Y) of two gamma variables."""
    both = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator)
    return float(both[0] / both.sum())


def _box(sides: tuple[int, int], share: float, generator: torch.Generator) -> tuple[slice, slice]:
    centre = torch.rand(2, generator=generator).tolist()
    spans = []
    for length, at in zip(sides, centre, strict=True):
        half = math.sqrt(1 - share) * length / 2
        ends = (at * length - half, at * length + half)
        spans.append(slice(*(min(max(round(end), 0), length) for end in ends)))
    return spans[0], spans[1]
