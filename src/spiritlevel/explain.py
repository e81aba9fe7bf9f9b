"""The arithmetic of batch normalization, step by step (Ioffe & Szegedy 2015, Algorithm 1).

    y = gamma * (x - mean) / sqrt(variance + eps) + beta          variance: biased, divided by n

Numbers that come as text are never rounded on the way: "0.1" is 1/10, the variance of 1 3 5 is 8/3
and its root stays √(8/3). Arrays are computed in float64, each channel by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, InvalidOperation, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritlevel.errors import UsageError

__all__ = [
    "TORCH_EPS",
    "BatchExplanation",
    "Channel",
    "Exact",
    "Explanation",
    "Normalized",
    "Root",
    "RoundedEarly",
    "RunningStep",
    "decimal",
    "exact",
    "explain_array",
    "explain_numbers",
    "load_array",
    "parse_number",
    "parse_numbers",
    "readable",
    "root",
    "rounded",
    "to_json",
]

ZERO, ONE = Fraction(0), Fraction(1)
TORCH_EPS = Fraction("1e-5")  # the default of torch.nn.BatchNorm*, as the next
TORCH_MOMENTUM = Fraction("0.1")
STEPS = (0, 1, 2, 5, 10, 50)  # the steps of the running average that are told
SETTLED = 0.01  # of a standard deviation
LISTED = 12  # values of a channel
MAX_NUMBERS = 10_000
MAX_VALUES, MAX_CHANNELS = 100_000_000, 100_000  # of an array: seconds, not minutes
MAX_EXPONENT = 100  # keeps every square and every variance a finite float64
MAX_DIGITS = 100
MAX_STEPS = 1_000_000
AXES = {2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}
# Digits enough for the square of the largest number that parse_number lets in, with its decimals.
_PRECISE = Context(prec=2 * MAX_EXPONENT + 50)


# ---- exact numbers, and how they are written -----------------------------------------------------


@dataclass(frozen=True)
class Root:
    """sign * √square + offset, an irrational number kept exact. Made by `root`."""

    square: Fraction
    sign: int = 1
    offset: Fraction = ZERO

    def __str__(self) -> str:
        inner = f"√{self.square}" if self.square.denominator == 1 else f"√({self.square})"
        signed = inner if self.sign > 0 else f"-{inner}"
        if not self.offset:
            return signed
        return f"{signed} {'+' if self.offset > 0 else '-'} {abs(self.offset)}"


Exact = Fraction | Root


def root(square: Fraction, sign: int = 1, offset: Fraction = ZERO) -> Exact:
    """sign * √square + offset: a Fraction where the root can be drawn, otherwise a Root."""
    over, under = math.isqrt(square.numerator), math.isqrt(square.denominator)
    if over * over == square.numerator and under * under == square.denominator:
        return sign * Fraction(over, under) + offset
    return Root(square, sign, offset)


def decimal(number: Exact | float) -> Decimal:
    """`number` to 250 digits."""
    with localcontext(_PRECISE):
        if isinstance(number, Root):
            return number.sign * decimal(number.square).sqrt() + decimal(number.offset)
        if isinstance(number, Fraction):
            return Decimal(number.numerator) / Decimal(number.denominator)
        return Decimal(number)


def rounded(number: Exact | float, places: int = 4) -> str:
    """`number` with that many decimals, halves away from zero: 2.6667."""
    with localcontext(_PRECISE):
        # + 0 turns -0.0000 into 0.0000
        return f"{decimal(number).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP) + 0:f}"


def readable(number: Exact | float) -> str:
    """With 4 decimals, or 5 digits where 4 decimals would lose too many: 0.0066667, 6.6667e-7."""
    value = decimal(number)
    if not value or Decimal("0.1") <= abs(value) < 10**9:
        return rounded(number)
    if abs(value) >= 10**9 or abs(value) < Decimal("1e-4"):
        return f"{value:.4e}"
    return rounded(number, 4 - value.adjusted())


def exact(number: Exact, width: int = 16) -> str | None:
    """`number` in full, as 0.2, 8/3 or √(8/3); None if that takes more than `width` characters."""
    if isinstance(number, Fraction):
        with localcontext(Context(prec=width)) as context:
            ratio = Decimal(number.numerator) / Decimal(number.denominator)
            text = f"{ratio.normalize():f}"
            if not context.flags[Inexact] and len(text) <= width:
                return text
    text = str(number)
    return text if len(text) <= width else None


# ---- input ---------------------------------------------------------------------------------------


def parse_number(text: str, where: str) -> Fraction:
    """`text` without rounding: "0.1" is 1/10. `where` it stood: "at position 2", "for --eps"."""
    got = f"got {text[:40] + '...' * (len(text) > 40)!r} {where}"
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise UsageError(f"{got}, wanted a number such as 3, -0.5 or 1e3") from None
    if not number.is_finite():
        raise UsageError(f"{got}, wanted a finite number: one nan or inf spoils a whole batch")
    if not number:
        return ZERO
    if abs(number.adjusted()) > MAX_EXPONENT or len(number.as_tuple().digits) > MAX_DIGITS:
        raise UsageError(
            f"{got}, wanted 0 or a size from 1e-{MAX_EXPONENT} to 1e{MAX_EXPONENT}, "
            f"in at most {MAX_DIGITS} digits"
        )
    return Fraction(number)


def parse_numbers(text: str) -> tuple[Fraction, ...]:
    """Numbers with white space or commas between them; a gap between two commas is an error."""
    words = re.split(r"\s*,\s*|\s+", text.strip().strip(",").strip())
    if words == [""]:
        raise UsageError("got no numbers, wanted at least one: spiritlevel explain 1 3 5")
    if len(words) > MAX_NUMBERS:
        raise UsageError(
            f"got {len(words):,} numbers, wanted at most {MAX_NUMBERS:,}; "
            "save more of them as an array of N x C with numpy.save and give the .npy file"
        )
    return tuple(parse_number(word, f"at position {i}") for i, word in enumerate(words, start=1))


def load_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, not read before it is used. Never unpickles. Raises UsageError."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except Exception as error:  # a broken header fails anywhere: in tokenize, ast, mmap
        raise UsageError(
            f"got {str(path)!r}, a .npy file that cannot be used ({error}); "
            "wanted plain numbers, saved by numpy.save: pickled objects are never loaded"
        ) from error


# ---- numbers, exact ------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundedEarly:
    """A result whose second decimal changes if the deviation is rounded to two decimals first."""

    difference: Fraction
    deviation: Fraction  # rounded: 1.63 for √(8/3)
    result: Exact  # difference / deviation, nothing rounded
    result_early: Fraction  # difference / the rounded deviation
    variance: Fraction  # of all results, divided by the rounded deviation


@dataclass(frozen=True)
class Normalized:
    """The results for n numbers, and what they are checked by."""

    results: tuple[Exact, ...]
    mean: Exact
    variance: Fraction
    outputs: tuple[Exact, ...]  # gamma * result + beta
    rounded_early: RoundedEarly | None


@dataclass(frozen=True)
class Explanation:
    """Every step for n numbers."""

    values: tuple[Fraction, ...]
    eps: Fraction
    gamma: Fraction
    beta: Fraction
    momentum: Fraction
    mean: Fraction
    differences: tuple[Fraction, ...]
    squares: tuple[Fraction, ...]
    variance: Fraction  # biased: what normalizes
    unbiased_variance: Fraction | None  # what the running average takes; None for one number
    deviation: Exact  # √(variance + eps)
    normalized: Normalized | None  # None where it is 0/0
    running_mean: Fraction  # after one step from 0
    running_variance: Fraction | None  # after one step from 1
    variance_with_torch_eps: Fraction  # of the results, had TORCH_EPS been added


def mean(numbers: Sequence[Fraction]) -> Fraction:
    return sum(numbers, ZERO) / len(numbers)


def unbiased(squares: Sequence[Fraction]) -> Fraction | None:
    """The sum of the squared differences over n - 1."""
    return sum(squares, ZERO) / (len(squares) - 1) if len(squares) > 1 else None


def divide(difference: Fraction, square: Fraction) -> Exact:
    """difference / √square."""
    return root(difference**2 / square, -1 if difference < 0 else 1)


def scale_and_shift(number: Exact, gamma: Fraction, beta: Fraction) -> Exact:
    """gamma * number + beta, for a normalized number."""
    if isinstance(number, Fraction):
        return gamma * number + beta
    return root(gamma**2 * number.square, number.sign * (-1 if gamma < 0 else 1), beta)


def running_average(start: Fraction, batch: Fraction, momentum: Fraction) -> Fraction:
    """One step of torch's running average: `momentum` is the weight of what is new."""
    return (1 - momentum) * start + momentum * batch


def _square(number: Exact) -> Fraction:
    return number**2 if isinstance(number, Fraction) else number.square


def normalize(
    differences: Sequence[Fraction], square: Fraction, gamma: Fraction, beta: Fraction
) -> Normalized | None:
    """All differences over √square, the variance plus eps; None where that is 0/0."""
    if not square:
        return None
    results = tuple(divide(difference, square) for difference in differences)
    return Normalized(
        results=results,
        mean=divide(mean(differences), square),  # one divisor for all: the mean of the quotients
        variance=mean([_square(result) for result in results]),
        outputs=tuple(scale_and_shift(result, gamma, beta) for result in results),
        rounded_early=rounded_early(differences, results, square),
    )


def rounded_early(
    differences: Sequence[Fraction], results: Sequence[Exact], square: Fraction
) -> RoundedEarly | None:
    """The largest of the results that show rounding in the middle; None if none does."""
    deviation = Fraction(rounded(root(square), 2))
    if not deviation:
        return None
    changed = [
        (difference, result)
        for difference, result in zip(differences, results, strict=True)
        if rounded(result, 2) != rounded(difference / deviation, 2)
    ]
    if not changed:
        return None
    difference, result = max(changed, key=lambda pair: pair[0])
    variance = mean([d**2 for d in differences]) / deviation**2
    return RoundedEarly(difference, deviation, result, difference / deviation, variance)


def explain_numbers(
    values: Sequence[Fraction],
    *,
    eps: Fraction = ZERO,
    gamma: Fraction = ONE,
    beta: Fraction = ZERO,
    momentum: Fraction = TORCH_MOMENTUM,
) -> Explanation:
    """Normalize `values` as one channel of a batch.

    Raises UsageError for no values, eps < 0 or a momentum outside 0 to 1.
    """
    _check(eps, momentum)
    if not values:
        raise UsageError("got no numbers, wanted at least one")
    center = mean(values)
    differences = tuple(value - center for value in values)
    squares = tuple(difference**2 for difference in differences)
    variance, above = mean(squares), unbiased(squares)
    return Explanation(
        values=tuple(values),
        eps=eps,
        gamma=gamma,
        beta=beta,
        momentum=momentum,
        mean=center,
        differences=differences,
        squares=squares,
        variance=variance,
        unbiased_variance=above,
        deviation=root(variance + eps),
        normalized=normalize(differences, variance + eps, gamma, beta),
        running_mean=running_average(ZERO, center, momentum),
        running_variance=None if above is None else running_average(ONE, above, momentum),
        variance_with_torch_eps=variance / (variance + TORCH_EPS),
    )


def _check(eps: Fraction | float, momentum: Fraction | float) -> None:
    if eps < 0:
        raise UsageError(f"got eps = {float(eps):g}, wanted 0 or more: it is added to a variance")
    if not 0 <= momentum <= 1:
        raise UsageError(
            f"got momentum = {float(momentum):g}, wanted 0 to 1: it is the weight of the new batch"
        )


# ---- arrays, float64 -----------------------------------------------------------------------------


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
    _check(eps, momentum)
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
    if momentum == 1:
        return 1
    negligible = math.ceil(math.log(1e-20) / math.log1p(-momentum))
    weights = np.float64(1 - momentum) ** np.arange(min(negligible, MAX_STEPS) + 1)
    last = _evaluate(centred, mean, variance, np.zeros(1), eps)
    off = np.abs(_evaluate(centred, mean, variance, weights, eps) - last).max(axis=0) > SETTLED
    if off[-1]:
        return None
    return int(np.flatnonzero(off)[-1]) + 1 if off.any() else 0


# ---- for other programs --------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """An explanation as dicts and lists; an exact number as {"exact": "8/3", "value": 2.666...}."""
    if isinstance(value, Fraction | Root):
        return {"exact": str(value), "value": float(decimal(value))}
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value
