"""Every step for a few numbers, nothing rounded on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from spiritlevel.errors import UsageError
from spiritlevel.explain.given import check_settings
from spiritlevel.explain.rational import ONE, ZERO, Exact, root, rounded

__all__ = [
    "TORCH_EPS",
    "TORCH_MOMENTUM",
    "Explanation",
    "Normalized",
    "RoundedEarly",
    "explain_numbers",
]

TORCH_EPS = Fraction("1e-5")  # the default of torch.nn.BatchNorm*, as the next
TORCH_MOMENTUM = Fraction("0.1")


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
    check_settings(eps, momentum)
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
