"""Every channel of an array in float64, and the running average that eval() uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritlevel.errors import UsageError
from spiritlevel.explain.given import check_settings
from spiritlevel.explain.numbers import TORCH_EPS, TORCH_MOMENTUM
from spiritlevel.explain.rational import MAX_EXPONENT

__all__ = [
    "AXES",
    "MAX_STEPS",
    "SETTLED",
    "BatchExplanation",
    "Channel",
    "RunningStep",
    "explain_array",
]

STEPS = (0, 1, 2, 5, 10, 50)  # the steps of the running average that are told
SETTLED = 0.01  # of a standard deviation
LISTED = 12  # values of a channel
MAX_VALUES, MAX_CHANNELS = 100_000_000, 100_000  # of an array: seconds, not minutes
MAX_STEPS = 1_000_000
AXES = {2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}


@dataclass(frozen=True)
class Channel:
    """One channel over all other axes. The variances are None where they are 0/0."""

    values: tuple[float, ...]  # those that enter, in the array's order; empty if they are many
    mean: float
    variance: float
    unbiased_variance: float | None
    normalized_mean: float | None
    normalized_variance: float | None


@dataclass(frozen=True)
class RunningStep:
    """After so many steps of one and the same batch, what eval() makes of the first value."""

    step: int | None  # None: for ever
    running_mean: float
    running_variance: float
    eval_output: float | None


@dataclass(frozen=True)
class BatchExplanation:
    """Every channel of an array, and the running average of channel 0 with what eval() gives."""

    shape: tuple[int, ...]
    axes: str  # "NCHW"
    count: int  # values that enter each mean
    eps: float
    gamma: float
    beta: float
    momentum: float
    channels: tuple[Channel, ...]
    first_value: float
    train_output: float | None
    running: tuple[RunningStep, ...]  # empty if the unbiased variance is 0/0
    steps_to_settle: int | None  # None: never, or more than MAX_STEPS


def explain_array(
    array: NDArray[Any],
    *,
    eps: float = float(TORCH_EPS),
    gamma: float = 1.0,
    beta: float = 0.0,
    momentum: float = float(TORCH_MOMENTUM),
) -> BatchExplanation:
    """Normalize `array` (N x C, or N x C and up to three axes more) per channel, as train() does.

    Raises UsageError for an array that is no such batch.
    """
    check_settings(eps, momentum)
    _check_batch(array)
    channels = tuple(_channel(_values(array, c), eps) for c in range(array.shape[1]))
    first = _values(array, 0)
    _, centred, variance = _moments(first)
    square = variance + eps
    running, settled = _running(centred, channels[0], gamma, beta, eps, momentum)
    return BatchExplanation(
        shape=array.shape,
        axes=AXES[array.ndim],
        count=first.size,
        eps=eps,
        gamma=gamma,
        beta=beta,
        momentum=momentum,
        channels=channels,
        first_value=float(first[0]),
        train_output=gamma * float(centred[0]) / math.sqrt(square) + beta if square else None,
        running=running,
        steps_to_settle=settled,
    )


def _check_batch(array: NDArray[Any]) -> None:
    if array.dtype.kind not in "iuf":
        raise UsageError(f"got an array of {array.dtype}, wanted real numbers, such as float32")
    if array.ndim not in AXES:
        raise UsageError(
            f"got an array of shape {array.shape}, wanted N x C or N x C x H x W; use numpy.reshape"
        )
    if not 0 < array.size <= MAX_VALUES or array.shape[1] > MAX_CHANNELS:
        raise UsageError(
            f"got an array of shape {array.shape}, "
            f"wanted 1 to {MAX_VALUES:,} values in at most {MAX_CHANNELS:,} channels"
        )


def _values(array: NDArray[Any], channel: int) -> NDArray[np.float64]:
    """The values of one channel, in the array's order."""
    with np.errstate(over="ignore"):  # of a longdouble
        x = array[:, channel].astype(np.float64).ravel()
    bad = x[~(np.abs(x) <= 10.0**MAX_EXPONENT)]
    if bad.size:
        raise UsageError(
            f"got {bad[0]:g} in channel {channel} ({bad.size:,} of {x.size:,} values), "
            f"wanted finite numbers up to 1e{MAX_EXPONENT} in size"
        )
    return x


def _moments(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], float]:
    """The mean, the differences from it, and the biased variance."""
    # Measured from the first value, a constant has variance 0 and a far mean costs no digits.
    difference = x - x[0]
    shift = difference.mean()
    centred = difference - shift
    return float(x[0] + shift), centred, float(np.square(centred).mean())


def _channel(x: NDArray[np.float64], eps: float) -> Channel:
    mean, centred, variance = _moments(x)
    normalized = centred / math.sqrt(variance + eps) if variance + eps else None
    return Channel(
        values=tuple(x.tolist()) if x.size <= LISTED else (),
        mean=mean,
        variance=variance,
        unbiased_variance=variance * x.size / (x.size - 1) if x.size > 1 else None,
        normalized_mean=None if normalized is None else float(normalized.mean()),
        normalized_variance=None if normalized is None else float(normalized.var()),
    )


def _running(
    centred: NDArray[np.float64],
    channel: Channel,
    gamma: float,
    beta: float,
    eps: float,
    momentum: float,
) -> tuple[tuple[RunningStep, ...], int | None]:
    """The running average over steps of one batch, and after how many eval() has settled."""
    mean, variance = channel.mean, channel.unbiased_variance
    if variance is None:
        return (), None
    steps: tuple[int | None, ...] = (*STEPS, None)
    weights = [*((1 - momentum) ** step for step in STEPS), 0.0 if momentum else 1.0]
    outputs = gamma * _evaluate(centred[0], mean, variance, np.array(weights), eps) + beta
    running = tuple(
        RunningStep(
            step=step,
            running_mean=(1 - weight) * mean,
            running_variance=weight + (1 - weight) * variance,
            eval_output=float(output) if math.isfinite(output) else None,
        )
        for step, weight, output in zip(steps, weights, outputs, strict=True)
    )
    # A result moves linearly with its value: if the outermost two have settled, all have.
    ends = np.array([[centred.min()], [centred.max()]])
    return running, _steps_to_settle(ends, mean, variance, eps, momentum)


def _evaluate(
    centred: NDArray[np.float64] | np.float64,
    mean: float,
    variance: float,
    weight: NDArray[np.float64],
    eps: float,
) -> NDArray[np.float64]:
    """What eval() makes of mean + `centred`, before gamma and beta; nan or inf where it is x/0.

    `weight` is what the start at 0 and 1 still has in the running average: (1 - momentum)^steps.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return (centred + weight * mean) / np.sqrt(weight + (1 - weight) * variance + eps)


def _steps_to_settle(
    centred: NDArray[np.float64], mean: float, variance: float, eps: float, momentum: float
) -> int | None:
    """Steps until all results of eval() are within SETTLED of their last; None: over MAX_STEPS."""
    if momentum == 0 or variance + eps == 0:
        return None
    negligible = 1 if momentum == 1 else math.ceil(math.log(1e-20) / math.log1p(-momentum))
    weights = np.float64(1 - momentum) ** np.arange(min(negligible, MAX_STEPS) + 1)
    last = _evaluate(centred, mean, variance, np.zeros(1), eps)
    off = np.abs(_evaluate(centred, mean, variance, weights, eps) - last).max(axis=0) > SETTLED
    if off[-1]:
        return None
    return int(np.flatnonzero(off)[-1]) + 1 if off.any() else 0
