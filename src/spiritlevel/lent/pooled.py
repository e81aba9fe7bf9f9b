"""Mean and variance of each channel over many batches, put together in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pooled", "by_sample"]

_CHUNK = 1 << 22
"""Values that are widened to float64 at once: 32 MiB."""


@dataclass(frozen=True)
class Pooled:
    """Of `count` values a channel: mean (C,) and biased variance (C,), float64, on one device."""

    count: int
    mean: Tensor
    var: Tensor
    low: Tensor | float = 0.0
    """What the mean leaves beyond float64, which counts where it is 1e8 deviations or more away."""

    @property
    def std(self) -> Tensor:
        return self.var.sqrt()

    @property
    def unbiased(self) -> Tensor:
        """What torch's running variance goes towards."""
        return self.var * (self.count / max(self.count - 1, 1))

    def merged(self, other: Pooled) -> Pooled:
        """Both together (Chan, Golub and LeVeque 1983): no sum of squares that could cancel."""
        count = self.count + other.count
        if count == 0:
            return self
        share = other.count / count
        delta = (other.mean - self.mean) + (other.low - self.low)
        moved = self.low + delta * share
        mean = self.mean + moved
        var = self.var * (1 - share) + other.var * share + delta.square() * share * (1 - share)
        return Pooled(count, mean, var, moved - (mean - self.mean))

    @staticmethod
    def of_all(parts: Iterable[Pooled]) -> Pooled:
        first, *rest = parts
        for each in rest:
            first = first.merged(each)
        return first

    @staticmethod
    def of_samples(mean_NC: Tensor, var_NC: Tensor, low_NC: Tensor, positions: int) -> Pooled:
        """From what `by_sample` tells of samples of so many positions."""
        near = mean_NC.mean(0)
        apart_NC = (mean_NC - near) + low_NC
        rest = apart_NC.mean(0)
        var = var_NC.mean(0) + (apart_NC - rest).square().mean(0)
        mean = near + rest
        return Pooled(len(mean_NC) * positions, mean, var, rest - (mean - near))


def by_sample(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample's mean, biased variance and `Pooled.low` over all axes but 0 and 1: (N, C)."""
    x_NCP = x.detach().reshape(*x.shape[:2], -1)
    rows = max(1, _CHUNK // max(1, x_NCP[0].numel())) if len(x_NCP) else 1
    if x.device.type == "mps":  # has no float64
        x_NCP = x_NCP.cpu()
    mean, var, low = zip(*map(_moments, torch.split(x_NCP, rows)), strict=True)
    return torch.cat(mean).cpu(), torch.cat(var).cpu(), torch.cat(low).cpu()


def _moments(x_NCP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In two passes, which are vectorised, as torch's `var_mean` along the last axis is not."""
    wide = x_NCP.double()
    mean = wide.mean(-1)
    if wide.shape[-1] == 1:
        return mean, torch.zeros_like(mean), torch.zeros_like(mean)
    if wide is not x_NCP:  # float32 has no mean 1e8 deviations away
        return mean, wide.sub_(mean[..., None]).square_().mean(-1), torch.zeros_like(mean)
    apart = wide - mean[..., None]
    low = apart.mean(-1)
    return mean, apart.sub_(low[..., None]).square_().mean(-1), low
