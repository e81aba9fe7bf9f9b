"""Numbers that several rules on data go by: how far statistics are off, and what is spared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spiritlevel.doctor.case import Case
from spiritlevel.lent.pooled import Pooled
from spiritlevel.probe.evidence import Layer

__all__ = [
    "FAR_MEAN",
    "FAR_VAR",
    "SHIFT",
    "YOUNG",
    "Drift",
    "and_others",
    "drift_of",
    "fits",
    "harmless",
    "is_young",
    "middle",
    "misses",
    "shift_between_calls",
]

FAR_MEAN, FAR_VAR = 0.5, math.log(2)
"""Half a deviation, or twice the variance: the output of eval mode is off by as much in each layer.
30 clean steps of SGD at a rate of 0.1 leave at most 0.27 and a factor of 1.8, over MLPs, VGG,
ResNet and GhostNet with batch, ghost and renormalized statistics."""
STRONG_MEAN, STRONG_VAR = 1.0, math.log(4)
"""What no lag behind the weights explains, in a model of whatever age."""
FIT = 0.2
"""Deviations, or of log variance: running statistics that are as close are those of the batches."""
SHIFT = 0.5
"""Deviations between the means of two calls of one layer."""
YOUNG = 20
"""Memories of the moving average (1 / momentum batches each) after which it should be settled.
Before, weights move as fast as it follows: a VGG after 120 clean steps of SGD (0.05, momentum 0.9)
has 0.67 in eval mode and 0.95 with batch statistics."""
GROWN = 200
"""Batches after which it should be settled in any case: that is `YOUNG` at torch's momentum, and an
average that remembers more than a whole training is itself the trouble."""


@dataclass(frozen=True)
class Drift:
    """Over channels the middle one; deviations are those of the input, eps included."""

    mean: float
    """|running mean - mean| / deviation."""
    var: float
    """|log of running variance over variance|."""
    known_mean: float
    """That is beyond the initial values, which are still in, and beyond chance."""
    known_var: float
    left: float
    """The share of the initial 0 and 1 that the moving average still holds."""

    @property
    def far(self) -> bool:
        return self.mean > FAR_MEAN or self.var > FAR_VAR

    @property
    def surely_far(self) -> bool:
        return self.known_mean > FAR_MEAN or self.known_var > FAR_VAR

    @property
    def strong(self) -> bool:
        return self.known_mean > STRONG_MEAN or self.known_var > STRONG_VAR


def drift_of(layer: Layer) -> Drift | None:
    """None where there is nothing to compare, or another rule says what is wrong.

    That is: frozen, never trained, no running statistics, not finite ones, negative variances.
    """
    mean, var = layer.running_mean, layer.running_var
    if layer.train is None or mean is None or var is None or layer.frozen:
        return None
    if layer.as_built or not bool((mean + var).isfinite().all() & (var >= 0).all()):
        return None
    left = _left(layer)
    raw = _off(layer, layer.train.pooled)
    known = raw
    if 1e-3 < left < 0.99:  # what the average would be without its initial values
        without = _off(layer, layer.train.pooled, left)
        known = min(raw[0], without[0]), min(raw[1], without[1])
    noise = _noise(layer)
    return Drift(*raw, known[0] - 3 * noise[0], known[1] - 3 * noise[1], left)


def _left(layer: Layer) -> float:
    # A count of 0 beside statistics that are not as built: it was lost, as in old files.
    if not layer.batches_tracked or not layer.momentum:
        return 0.0
    return float(max(0.0, 1 - layer.momentum) ** layer.batches_tracked)


def _off(layer: Layer, pooled: Pooled, left: float = 0.0) -> tuple[float, float]:
    """By how much the running statistics miss `pooled`, a share of initial 0 and 1 taken out."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean = layer.running_mean / (1 - left)
    var = ((layer.running_var - left) / (1 - left)).clamp(min=0)
    fed = pooled.unbiased + layer.eps
    shift = (mean - pooled.mean).abs() / fed.sqrt()
    return middle(shift), middle(((var + layer.eps) / fed).log().abs())


def _noise(layer: Layer) -> tuple[float, float]:
    """One standard error of the mean and of the log variance, from so many samples."""
    assert layer.train is not None
    reading, pooled = layer.train, layer.train.pooled
    spread = reading.spread
    if spread is None:
        return 0.0, math.sqrt(2 / max(pooled.count - 1, 1))
    samples = sum(spread.sizes)
    error = (spread.within / samples).sqrt() / (pooled.var + layer.eps).sqrt()
    return middle(error), math.sqrt(2 / max(samples - 1, 1))


def is_young(layer: Layer) -> bool:
    """Whether the moving average has seen fewer than `YOUNG` of its memories, and than `GROWN`."""
    if not layer.batches_tracked:
        return False
    momentum = layer.momentum if layer.momentum else 0.1
    return layer.batches_tracked < min(YOUNG / momentum, GROWN)


def fits(case: Case) -> bool:
    """Whether the model has trained and its running statistics are those of all batches together.

    In eval mode: in training, layers behind the first see what batches in order make of the data.
    """
    off = _off_in_eval(case)
    return bool(off) and max(off) < FIT


def misses(case: Case) -> bool:
    """Whether some layer's running statistics are far from those of all batches together."""
    return max(_off_in_eval(case), default=0.0) > FAR_MEAN


def _off_in_eval(case: Case) -> list[float]:
    return [
        max(_off(layer, layer.eval.pooled))
        for layer in case.data.layers.values()
        if layer.eval is not None and drift_of(layer) is not None
    ]


def shift_between_calls(layer: Layer) -> float | None:
    """Deviations between the means of the two calls furthest apart; None if not above `SHIFT`."""
    if layer.train is None or layer.frozen or layer.train.calls < 2:
        return None
    calls = layer.train.by_call
    means: Tensor = torch.stack([each.mean for each in calls])
    deviation = (torch.stack([each.var for each in calls]).mean(0) + layer.eps).sqrt()
    apart = (means[:, None] - means[None]).abs() / deviation  # (calls, calls, C)
    shift = float(apart.median(-1).values.max())
    return shift if shift > SHIFT else None


def harmless(case: Case) -> bool:
    """Whether targets show that eval mode loses nothing by its statistics."""
    return case.gap is not None and case.gap.gain is not None and not case.gap.blames


def middle(values: Tensor) -> float:
    return float(values.double().median()) if values.numel() else 0.0


def and_others(paths: list[str]) -> str:
    """To be put behind what is said of the first."""
    rest = len(paths) - 1
    return f" (and {rest} other layer{'s' if rest > 1 else ''})" if rest else ""
