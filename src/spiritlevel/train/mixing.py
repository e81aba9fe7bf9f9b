"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): batches blended with themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["mix"]


def mix(
    x: Tensor, *, mixup: float = 0.0, cutmix: float = 0.0, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """x (N, C, H, W) -> blended images of that shape, the others' row numbers (N,), the own share.

    Each image is blended with another of the batch; the loss of its prediction is then

        share * loss(own class) + (1 - share) * loss(the other's class)

    With `mixup` the share is drawn from Beta(mixup, mixup). With `cutmix` the other takes its place
    in a rectangle whose sides are sqrt(1 - share) of the image's, the share from Beta(cutmix,
    cutmix); at a border it loses what lies outside, and the share is that of what is left. Where
    both are above 0, a coin decides; one of them has to be. All is drawn by `generator`, a CPU's.
    """
    coin = torch.rand((), generator=generator).item() < 0.5
    other = torch.randperm(len(x), generator=generator).to(x.device)
    if cutmix and (coin or not mixup):
        return _cut(x, other, _beta(cutmix, generator), generator)
    share = _beta(mixup, generator)
    return share * x + (1 - share) * x[other], other, share


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Drawn from Beta(alpha, alpha), as X / (X + Y) of two gamma variables."""
    both = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator)
    return float(both[0] / both.sum())


def _cut(
    x: Tensor, other: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    height, width = x.shape[-2:]
    centre = torch.rand(2, generator=generator).tolist()
    spans = []
    for length, at in zip((height, width), centre, strict=True):
        half = math.sqrt(1 - share) * length / 2
        ends = (at * length - half, at * length + half)
        spans.append(slice(*(min(max(round(end), 0), length) for end in ends)))
    rows, columns = spans
    blended = x.clone()
    blended[..., rows, columns] = x[other][..., rows, columns]
    left_out = (rows.stop - rows.start) * (columns.stop - columns.start)
    return blended, other, 1 - left_out / (height * width)
