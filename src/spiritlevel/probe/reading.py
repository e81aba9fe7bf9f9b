"""What is read of one layer in one sampled step: what came in, what went out, what it has learned.

Moments are taken channel by channel (axis 1; for layer norms the last) and merged over the forward
passes of a step as Chan et al. (1983) do, in float64. A batch norm's input moments are those of the
whole batch, from the layer itself where it has them; other moments are those of whole samples, as
many as have about `MOST_VALUES` values. Percentiles are of at most `MOST_SORTED` values of a pass,
at equal distances, without a random choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spiritlevel.lent.pooled import Pooled

__all__ = ["MOST_SORTED", "MOST_VALUES", "Moments", "Sample", "moments_within", "spread"]

MOST_VALUES = 2**15
"""More of them do not move a layer's mean by a hundredth of its deviation."""
MOST_SORTED = 2048
"""The 5th percentile of a normal distribution is known to 0.05 deviations from so many."""
MOST_PASSES = 16
"""Of a step, whose values are kept apart for percentiles; with more, every second is let go."""
PERCENTILES = (0.05, 0.5, 0.95)

Moments = tuple[Tensor, Tensor]
"""Mean (C,) and biased variance (C,)."""


class Apart:
    """How far apart the means of passes are."""

    def __init__(self) -> None:
        self.count = 0
        self.least: Tensor
        self.largest: Tensor
        self.within: Tensor

    def add(self, moments: Moments) -> None:
        mean, var = (each.detach().double() for each in moments)
        if self.count:
            self.least = torch.minimum(self.least, mean)
            self.largest = torch.maximum(self.largest, mean)
            self.within = self.within + var
        else:
            self.least, self.largest, self.within = mean, mean, var
        self.count += 1

    def shift(self) -> Tensor:
        """At most, in deviations within a pass; the median channel."""
        apart = (self.largest - self.least) / (self.within / self.count).sqrt()
        return apart.nan_to_num(0.0).median()


class Sample:
    """One layer's passes in one step; `row` makes numbers of them, on the layer's device."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.input: Pooled | None = None
        self.output: Pooled | None = None
        self.passes = Apart()
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.alive: Tensor | None = None
        self.spoiled: Tensor | None = None
        self.saturated: list[Tensor] = []

    @torch.no_grad()
    def take(
        self,
        x: Tensor | None,
        y: Tensor,
        known: Callable[[], Moments | None],
        *,
        apart: bool = True,
    ) -> None:
        """One pass. `known` gives the moments of x that the layer has taken, if it has.

        `apart`: this pass normalised by its own moments, so it matters how they differ.
        """
        if x is not None and x.numel() and x.dim():
            x = x.detach()
            moments = known() or _moments(_thinned(x), self.axis)
            self.input = _joined(self.input, _values(x, self.axis), moments)
            if apart:
                self.passes.add(moments)
            _keep(self.inputs, spread(x))
        if y.numel() and y.dim():
            y = y.detach()
            moments = _moments(_thinned(y), self.axis)
            self.output = _joined(self.output, _values(y, self.axis), moments)
            _keep(self.outputs, spread(y))
            least, largest = _range(y, self.axis)
            alive, spoiled = ~(largest <= 0), ~(least.isfinite() & largest.isfinite())
            self.alive = alive if self.alive is None else self.alive | alive
            self.spoiled = spoiled if self.spoiled is None else self.spoiled | spoiled

    @torch.no_grad()
    def row(self) -> dict[str, Tensor]:
        """0-dim tensors by the name of the number."""
        found: dict[str, Tensor] = {}
        for name, merged, values in (
            ("input", self.input, self.inputs),
            ("output", self.output, self.outputs),
        ):
            if merged is not None:
                found[f"{name}_mean"], found[f"{name}_var"] = _whole(merged)
                ordered = (torch.cat(values) if len(values) > 1 else values[0]).sort().values
                for share in PERCENTILES:
                    place = round(share * (len(ordered) - 1))
                    found[f"{name}_p{round(100 * share):02}"] = ordered[place]
        merged = self.input or self.output
        if merged is not None:
            found["values"] = merged.mean.new_tensor(merged.count)
            spoiled = ~(merged.mean + merged.var).isfinite()
            if self.spoiled is not None and self.spoiled.shape == spoiled.shape:
                spoiled = spoiled | self.spoiled
            found["non_finite"] = spoiled.sum()
        if self.alive is not None:
            found["dead_share"] = (~self.alive).float().mean()
        if self.passes.count > 1:
            found["pass_shift"] = self.passes.shift()
        if self.saturated:
            found["saturated_share"] = torch.stack(self.saturated).mean()
        return found

    def against(self, running: Moments, eps: float) -> dict[str, Tensor]:
        """How far running statistics are from the batch's: z-score and log variance ratio."""
        assert self.input is not None
        mean, var = (each.to(self.input.mean) for each in running)
        batch = self.input.var
        z = (mean - self.input.mean).abs() / (batch + eps).sqrt()
        ratio = ((var + eps) / (batch + eps)).log()
        return {
            "z_median": z.median(),
            "z_max": z.max(),
            "log_var_ratio_median": ratio.median(),
            "log_var_ratio_worst": ratio[ratio.abs().argmax()],
        }


def _joined(so_far: Pooled | None, count: int, moments: Moments) -> Pooled:
    """`count` values a channel more. Raises RuntimeError for other channels than before."""
    mean, var = moments
    kind = torch.float32 if mean.device.type == "mps" else torch.float64
    part = Pooled(count, mean.detach().to(kind), var.detach().to(kind))
    return part if so_far is None else so_far.merged(part)


def _whole(pooled: Pooled) -> Moments:
    """Mean and variance over all channels together, 0-dim."""
    mean = pooled.mean.mean()
    return mean, pooled.var.mean() + (pooled.mean - mean).square().mean()


def moments_within(x: Tensor, y: Tensor, eps: float) -> Moments | None:
    """The moments that torch's batch norm has kept for its backward pass, if y is its output.

    None where they are not at hand, or where a look at them would run a checkpoint.
    """
    node: Any = y.grad_fn
    if node is None or not node.name().endswith("BatchNormBackward0"):
        return None
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return None
    mean, scale = node._saved_result1, node._saved_result2
    if mean is None or scale is None or mean.shape != x.shape[1:2]:
        return None
    return mean, (scale.double() ** -2 - eps).clamp_min(0)


def spread(x: Tensor) -> Tensor:
    """At most `MOST_SORTED` of its values, float32, at equal distances in memory; a copy."""
    if x.is_complex():
        x = torch.view_as_real(x)
    flat = x.movedim(1, -1) if x.dim() > 2 and not x.is_contiguous() else x
    flat = flat.reshape(-1) if flat.is_contiguous() else _thinned(x).reshape(-1)
    step = max(1, -(-flat.numel() // MOST_SORTED))
    while step > 1 and math.gcd(step, flat.numel()) > 1:
        step += 1  # a step that the width is a multiple of would read one column only
    return flat[::step].to(torch.float32, copy=True)


def _thinned(x: Tensor) -> Tensor:
    """Every so manieth sample."""
    return x[:: max(1, min(len(x), x.numel() // MOST_VALUES))]


def _range(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Least and largest of each channel, in the order that is fastest."""
    if x.dim() < 2:
        return x.amin()[None], x.amax()[None]
    if axis != 1:
        x = x.flatten(0, -2)
        return x.amin(0), x.amax(0)
    if x.dim() > 2 and x.is_contiguous():
        x = x.flatten(2)
        return x.amin(2).amin(0), x.amax(2).amax(0)
    rows = x.movedim(1, -1)
    if rows.is_contiguous():  # samples first: torch takes far longer over all at once
        low, high = rows.reshape(len(x), -1).amin(0), rows.reshape(len(x), -1).amax(0)
        return low.view(-1, x.shape[1]).amin(0), high.view(-1, x.shape[1]).amax(0)
    others = [i for i in range(x.dim()) if i != 1]
    return x.amin(others), x.amax(others)


def _keep(values: list[Tensor], more: Tensor) -> None:
    """Bounded, however many passes a step has: when there are many, every second goes."""
    values.append(more)
    if len(values) > MOST_PASSES:
        values[:] = [torch.cat(values)[::2]]


def _moments(x: Tensor, axis: int) -> Moments:
    """In two passes in float64, which a CPU does sooner than var_mean."""
    x = x.to(torch.float32 if x.device.type == "mps" else torch.float64)
    if x.dim() < 2:
        x = x[None]
    axis %= x.dim()
    others = [i for i in range(x.dim()) if i != axis]
    mean = x.mean(others, keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(others)


def _values(x: Tensor, axis: int) -> int:
    return x.numel() if x.dim() < 2 else x.numel() // max(x.shape[axis], 1)
