"""What is done once a channel, between the passes over the elements, as Numba compiles it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from spiritlevel.kernels.compiled import array, finite, jit

__all__ = ["CENTRE", "K1", "K2", "SCALE", "SHIFT", "blend", "low_of", "merge_rows", "steps"]

CENTRE, SCALE, SHIFT, K1, K2 = (np.int64(which) for which in range(5))
"""The coefficients, each with a number for every slot."""


_sum_at, _, _ = array("sums", np.float64)
_of_channel, _put_of_channel, _ = array("per_channel", np.float64)


@jit
def blend(mean, other, share):
    """A weighted mean; of infinite ones their sum, which reordered products would not be."""
    if finite(mean) and finite(other):
        return mean * (1.0 - share) + other * share
    return mean + other


@jit
def low_of(mean, high):
    """What is left of a mean beyond `high`, the number nearest to it."""
    return mean - float(high) if finite(mean) else 0.0


_number, _put_number, _ = array("first", np.float32)
_mean_at, _put_mean, _ = array("sums", np.float64)
_square_at, _put_square, _ = array("products", np.float64)


@jit
def merge_rows(at, values, seen, means, squares):
    """Some values of each channel into mean and squares of those seen before, as Chan does.

    Of `at`: how many channels, a centre for each, and the sum and the sum of squares of the
    distances from it; the centre becomes the mean of all.
    """
    n, others = float(values), float(seen)
    share = n / (others + n)
    for i in range(at.count):
        off = float(_number(at.total, i)) / n
        mean = float(_number(at.centre, i)) + off
        square = float(_number(at.square, i)) - off * off * n
        if seen:
            before = _mean_at(means, i)
            delta = mean - before
            square += _square_at(squares, i) + delta * delta * others * share
            mean = blend(before, mean, share)
        _put_mean(means, i, mean)
        _put_square(squares, i, square)
        _put_number(at.centre, i, np.float32(mean))


@jit
def merged(work, part, c):
    """Mean and sum of squares of a channel in a part, from those of its lanes."""
    slots, step = work.fold * work.C * work.spread, work.C * work.spread
    found = work.partials + 2 * part * slots * 8
    total, square, apart = 0.0, 0.0, 0.0
    for first in range(c * work.spread, slots, step):
        for lane in range(first, first + work.spread):
            total += _sum_at(found, lane)
            square += _sum_at(found, slots + lane)
    mean = total / (work.fold * work.spread)
    for first in range(c * work.spread, slots, step):
        for lane in range(first, first + work.spread):
            off = _sum_at(found, lane) - mean
            apart += off * off
    return mean, square + apart * min(work.N - part * work.part, work.part) * work.S


def steps(number: Any) -> dict[str, Any]:
    """The steps `prepare`, `settle`, `settle_sums` and `settle_given`, for coefficients in float32
    or float64.

    A step is a function of (work, part, first, last), for channels first to last; the part is
    ignored. A channel's coefficients stand in `fold * spread` slots.
    """
    of = _coefficients(number)
    prepare, lean = _preparing(of), _leaning(of)
    found = {"prepare": prepare, "settle": _settling(of, prepare)}
    return found | {"settle_sums": _settling_sums(of, lean), "settle_given": _given(of, lean)}


def _coefficients(number: Any) -> SimpleNamespace:
    """How to get at numbers of channels, and to fill in coefficients."""
    size = np.dtype(number).itemsize
    given, put_given, _ = array("given", number)
    _, put_slot, _ = array("slots", number)

    @jit
    def fill(work, which, c, value):
        """One channel's coefficient, in all of its slots."""
        slots = work.fold * work.C * work.spread
        found = work.coefficients + which * slots * size
        for first in range(c * work.spread, slots, work.C * work.spread):
            for slot in range(first, first + work.spread):
                put_slot(found, slot, value)

    @jit
    def factor(work, c):
        """weight / sqrt(var + eps)."""
        weight = float(given(work.weight, c)) if work.weight != 0 else 1.0
        return weight / math.sqrt(_of_channel(work.var, c) + work.eps)

    return SimpleNamespace(
        number=number, given=given, put_given=put_given, fill=fill, factor=factor
    )


def _preparing(of: SimpleNamespace) -> Any:
    number, given, fill, factor = of.number, of.given, of.fill, of.factor

    @jit
    def prepare(work, _part, first, last):
        """From mean and variance to the coefficients of `apply`."""
        for c in range(first, last):
            mean, a = _of_channel(work.mean, c), factor(work, c)
            bias = float(given(work.bias, c)) if work.bias != 0 else 0.0
            fill(work, CENTRE, c, number(mean))
            fill(work, SCALE, c, number(a))
            fill(work, SHIFT, c, number(bias - low_of(mean, number(mean)) * a))

    return prepare


def _settling(of: SimpleNamespace, prepare: Any) -> Any:
    number, given, put_given = of.number, of.given, of.put_given

    @jit
    def follow(work, first, last):
        """The running statistics go by a share towards the batch's, whose variance times factor."""
        means, vars_ = work.running_mean, work.running_var
        share, rest = work.share, 1.0 - work.share
        for c in range(first, last):
            mean, var = _of_channel(work.mean, c), _of_channel(work.var, c) * work.factor
            put_given(means, c, number(rest * float(given(means, c)) + share * mean))
            put_given(vars_, c, number(rest * float(given(vars_, c)) + share * var))

    @jit
    def settle(work, _part, first, last):
        """Merge the means and squares of all parts, as Chan does; then `follow` and `prepare`."""
        values = work.S * work.fold * work.spread
        for c in range(first, last):
            mean, square, seen = 0.0, 0.0, 0.0
            for part in range(work.parts):
                count = min(work.N - part * work.part, work.part) * values
                other, more = merged(work, part, c)
                share, delta = count / (seen + count), other - mean
                square += more + delta * delta * seen * share
                mean = blend(mean, other, share)
                seen += count
            _put_of_channel(work.mean, c, mean)
            _put_of_channel(work.var, c, square / seen)
        if work.running_mean != 0:
            follow(work, first, last)
        prepare(work, 0, first, last)

    return settle


def _leaning(of: SimpleNamespace) -> Any:
    number, fill, factor = of.number, of.fill, of.factor

    @jit
    def lean(work, c, total, weight_grad, count):
        """The coefficients of `descend` that lean on the sums over `count` values."""
        mean, a = _of_channel(work.mean, c), factor(work, c)
        deviation = math.sqrt(_of_channel(work.var, c) + work.eps)
        slope = -a * weight_grad / (count * deviation)
        fill(work, K2, c, number(slope))
        fill(work, K1, c, number(-a * total / count - low_of(mean, number(mean)) * slope))

    return lean


def _settling_sums(of: SimpleNamespace, lean: Any) -> Any:
    number, put_given = of.number, of.put_given

    @jit
    def settle_sums(work, _part, first, last):
        """From the sums to the gradients of weight and bias, and the coefficients of `descend`."""
        count, slots = work.N * work.S * work.fold * work.spread, work.fold * work.C * work.spread
        for c in range(first, last):
            total, product = 0.0, 0.0
            for part in range(work.parts):
                found = work.partials + 2 * part * slots * 8
                for start in range(c * work.spread, slots, work.C * work.spread):
                    for lane in range(start, start + work.spread):
                        total += _sum_at(found, lane)
                        product += _sum_at(found, slots + lane)
            mean = _of_channel(work.mean, c)
            low = low_of(mean, number(mean))
            deviation = math.sqrt(_of_channel(work.var, c) + work.eps)
            weight_grad = (product - low * total) / deviation
            put_given(work.grad_weight, c, number(weight_grad))
            put_given(work.grad_bias, c, number(total))
            lean(work, c, total, weight_grad, count)

    return settle_sums


def _given(of: SimpleNamespace, lean: Any) -> Any:
    given = of.given

    @jit
    def settle_given(work, _part, first, last):
        """From gradients of weight and bias over `count` values, more of which are elsewhere."""
        for c in range(first, last):
            total, weight_grad = float(given(work.grad_bias, c)), float(given(work.grad_weight, c))
            lean(work, c, total, weight_grad, work.count)

    return settle_given
