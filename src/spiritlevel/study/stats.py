"""Intervals, paired by seed: Student's t below 8 seeds, bootstrap from 8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spiritlevel.errors import require

__all__ = ["LEVEL", "MIN_SEEDS", "Interval", "log_slope", "mean_interval", "ratio_interval"]

LEVEL = 0.95
MIN_SEEDS = 3
_BOOTSTRAP_FROM = 8


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds and its two-sided 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float | None]) -> Interval | None:
    """The mean and its interval; None with under 3 values or where one is missing or not finite."""
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    if len(known) < max(MIN_SEEDS, len(values)):
        return None
    mean = math.fsum(known) / len(known)
    if math.isclose(max(known), min(known), rel_tol=1e-12):
        return Interval(mean, mean, mean, len(known))
    stats = require("scipy.stats", extra="study")
    if len(known) < _BOOTSTRAP_FROM:
        low, high = stats.t.interval(LEVEL, len(known) - 1, loc=mean, scale=stats.sem(known))
    else:
        np = require("numpy", extra="study")
        found = stats.bootstrap(
            (known,), np.mean, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(0)
        )
        low, high = found.confidence_interval
    return Interval(mean, float(low), float(high), len(known))


def ratio_interval(ratios: Sequence[float | None]) -> Interval | None:
    """The geometric mean of positive ratios and its interval; None as for `mean_interval`."""
    logs = [math.log(r) if r is not None and 0 < r < math.inf else None for r in ratios]
    found = mean_interval(logs)
    if found is None:
        return None
    return Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high), found.n)


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of log y over log x."""
    a, b = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    covariance = math.fsum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    return covariance / math.fsum((p - mean_a) ** 2 for p in a)
