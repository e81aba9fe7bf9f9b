"""How well a batch's output meets its targets, sample by sample, and what is known of the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["Metric", "Scored", "difference", "metric_of", "output_of", "score", "scored", "wilson"]

Metric = Literal["accuracy", "mean squared error"]
_Z = 1.959964
"""Two-sided 95 % of a normal distribution."""


@dataclass(frozen=True)
class Scored:
    """A mean over samples and its 95 % interval: Wilson's for shares, else the normal one."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def output_of(result: Any) -> Tensor | None:
    """The tensor that counts of what a model returned."""
    logits = getattr(result, "logits", None)
    if logits is None and isinstance(result, dict):
        logits = result.get("logits")
    found = tree_leaves(logits if logits is not None else result)
    return next((t for t in found if isinstance(t, Tensor) and t.is_floating_point()), None)


def metric_of(output: Tensor, target: Tensor) -> Metric | None:
    """None where the two do not fit each other."""
    if target.is_floating_point():
        return "mean squared error" if output.numel() == target.numel() else None
    return None if _classes(output, target) is None else "accuracy"


def score(output: Tensor, target: Tensor) -> Tensor:
    """One number a sample, (N,) float64 on the CPU: share of right answers, or squared error.

    Classes below 0 and from the number of classes on, as -100 and 255, are left out.
    """
    target = target.detach().to(output.device)
    if target.is_floating_point():
        error = (output.detach().double() - target.reshape(output.shape).double()).square()
        return error.reshape(len(output), -1).mean(1).cpu()
    logits = _classes(output.detach(), target)
    assert logits is not None  # as `metric_of` has said
    given = (target >= 0) & (target < max(logits.shape[1], 2))
    answer = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
    right = ((answer == target) & given).double().reshape(len(target), -1).sum(1)
    return (right / given.double().reshape(len(target), -1).sum(1)).cpu()


def _classes(output: Tensor, target: Tensor) -> Tensor | None:
    """The logits as (N, classes, ...) beside targets (N, ...); one class stands for two."""
    if output.dim() == target.dim() + 1:
        if (len(output), *output.shape[2:]) == tuple(target.shape):
            return output
        if output.shape[:-1] == target.shape:
            return output.movedim(-1, 1)
    return output[:, None] if output.shape == target.shape else None


def scored(values: Tensor, metric: Metric) -> Scored:
    """Of one number a sample."""
    values = values[~values.isnan()] if metric == "accuracy" else values
    n = max(len(values), 1)
    mean = float(values.mean())
    shares = metric == "accuracy" and bool(((values == 0) | (values == 1)).all())
    if shares:
        return Scored(mean, *wilson(mean * n, n))
    half = _student(n - 1) * float(values.std()) / math.sqrt(n) if n > 1 else math.inf
    return Scored(mean, mean - half, mean + half)


def wilson(hits: float, n: int) -> tuple[float, float]:
    """95 % interval of a share, of `hits` among n."""
    mean = hits / n
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n * n)) / (1 + _Z**2 / n)
    return max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))


def difference(a: Sequence[Tensor], b: Sequence[Tensor], metric: Metric) -> Scored:
    """Of a over b on the same samples: the mean of their differences and its 95 % interval.

    For accuracy with two samples more, of which one is better and one worse (Agresti and Min 2005):
    a few samples that all change alike prove little.
    """
    values = torch.cat(list(a)) - torch.cat(list(b))
    values = values[~values.isnan()]
    n = len(values)
    if n < 2:
        return Scored(float(values.sum()), -math.inf, math.inf)
    mean = float(values.mean())
    if metric == "accuracy":
        middle = float(values.sum()) / (n + 2)
        square = (float(values.square().sum()) + 1) / (n + 2) - middle**2
        half = _Z * math.sqrt(max(square, 0.0) / (n + 2))
        return Scored(mean, middle - half, middle + half)
    half = _student(n - 1) * float(values.std()) / math.sqrt(n)
    return Scored(mean, mean - half, mean + half)


def _student(degrees: int) -> float:
    """The 97.5 % point of Student's t, by its expansion (Abramowitz and Stegun 26.7.5)."""
    z = _Z
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
