"""The passes over planes: contiguous (N, C, S), where a stretch of S numbers shares one channel.

`applying` and `descending` are yet to be told how they write: into the cache or past it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from spiritlevel.kernels.channels import CENTRE, K1, K2, SCALE, SHIFT, blend
from spiritlevel.kernels.compiled import finite, jit, span

__all__ = ["applying", "collecting", "descending", "reducing"]

_BLOCK = 4096
"""Elements that are still in the first cache when they are looked at again."""


def _blocks(read: SimpleNamespace) -> Any:
    number, size, x_at = read.number, read.size, read.x

    @jit
    def exactly(work, n, stop, c, offset, width):
        """Mean and sum of squares in float64: for a block that float32 has not the range for."""
        total, square = 0.0, 0.0
        for m in range(n, stop):
            x = work.x + ((m * work.C + c) * work.S + offset) * size
            for i in range(width):
                total += float(x_at(x, i))
        mean = total / ((stop - n) * width)
        for m in range(n, stop):
            x = work.x + ((m * work.C + c) * work.S + offset) * size
            for i in range(width):
                square += (float(x_at(x, i)) - mean) ** 2
        return mean, square

    @jit
    def block(work, n, stop, c, offset, width):
        """Mean and sum of squares of samples n to stop; corrected for the mean's own rounding."""
        count, total = (stop - n) * width, number(0)
        for m in range(n, stop):
            x = work.x + ((m * work.C + c) * work.S + offset) * size
            for i in range(width):
                total += x_at(x, i)
        centre = total / number(count)
        rest, square = number(0), number(0)
        for m in range(n, stop):
            x = work.x + ((m * work.C + c) * work.S + offset) * size
            for i in range(width):
                d = x_at(x, i) - centre
                rest += d
                square += d * d
        if not finite(square):
            return exactly(work, n, stop, c, offset, width)
        rest64 = float(rest) / count
        return float(centre) + rest64, float(square) - rest64 * rest64 * count

    return block


def collecting(read: SimpleNamespace) -> Any:
    sum_at, put_sum, product_at, put_product = read.sums
    block = _blocks(read)

    @jit
    def collect(work, part, first, last):
        C, S = work.C, work.S
        begin, end = span(work, part)
        means = work.partials + 2 * part * C * 8
        squares = means + C * 8
        for c in range(first, last):
            put_sum(means, c, 0.0)
            put_product(squares, c, 0.0)
        step, seen = max(1, _BLOCK // (S * (last - first))), 0
        for n in range(begin, end, step):
            stop = min(n + step, end)
            for offset in range(0, S, _BLOCK):
                width = min(_BLOCK, S - offset)
                count = (stop - n) * width
                share = count / (seen + count)
                for c in range(first, last):
                    mean, square = block(work, n, stop, c, offset, width)
                    before = sum_at(means, c)
                    delta = mean - before
                    square += delta * delta * seen * share
                    put_product(squares, c, product_at(squares, c) + square)
                    put_sum(means, c, blend(before, mean, share))
                seen += count

    return collect


def applying(read: SimpleNamespace, act_of: Any, add: str) -> Any:
    number, size, coefficient = read.number, read.size, read.coefficient
    x_at, residual_at, adds = read.x, read.residual, add == "add"

    def apply_by(write):
        @jit
        def apply(work, part, first, last):
            C, S, slope = work.C, work.S, number(work.slope)
            begin, end = span(work, part)
            for n in range(begin, end):
                for c in range(first, last):
                    at = (n * C + c) * S * size
                    x, y, residual = work.x + at, work.out + at, work.residual + at
                    high, a = coefficient(work, CENTRE, c), coefficient(work, SCALE, c)
                    b = coefficient(work, SHIFT, c)
                    for i in range(S):
                        z = (x_at(x, i) - high) * a + b
                        if adds:
                            z += residual_at(residual, i)
                        write(y, i, act_of(z, slope))

        return apply

    return apply_by


def reducing(read: SimpleNamespace, back_of: Any, add: str) -> Any:
    number, size, coefficient = read.number, read.size, read.coefficient
    x_at, grad_at, residual_at = read.x, read.grad, read.residual
    put_grad_residual, adds, masks = read.put_grad_residual, add == "add", add == "mask"
    sum_at, put_sum, product_at, put_product = read.sums

    @jit
    def reduce(work, part, first, last):
        C, S, slope = work.C, work.S, number(work.slope)
        totals = work.partials + 2 * part * C * 8
        products = totals + C * 8
        for c in range(first, last):
            put_sum(totals, c, 0.0)
            put_product(products, c, 0.0)
        begin, end = span(work, part)
        for n in range(begin, end):
            for c in range(first, last):
                high, a = coefficient(work, CENTRE, c), coefficient(work, SCALE, c)
                b = coefficient(work, SHIFT, c)
                for offset in range(0, S, _BLOCK):
                    at, width = ((n * C + c) * S + offset) * size, min(_BLOCK, S - offset)
                    x, grad, residual = work.x + at, work.grad + at, work.residual + at
                    grad_residual = work.grad_residual + at
                    total, product = number(0), number(0)
                    for i in range(width):
                        d = x_at(x, i) - high
                        z = residual_at(residual, i) if masks else d * a + b
                        if adds:
                            z += residual_at(residual, i)
                        g = back_of(z, slope, grad_at(grad, i))
                        if adds or masks:
                            put_grad_residual(grad_residual, i, g)
                        total += g
                        product += g * d
                    put_sum(totals, c, sum_at(totals, c) + float(total))
                    put_product(products, c, product_at(products, c) + float(product))

    return reduce


def descending(read: SimpleNamespace, back_of: Any, add: str) -> Any:
    number, size, coefficient = read.number, read.size, read.coefficient
    x_at, grad_at, grad_residual_at = read.x, read.grad, read.grad_residual
    added = add != ""

    def descend_by(write):
        @jit
        def descend(work, part, first, last):
            C, S, slope, training = work.C, work.S, number(work.slope), work.training != 0
            begin, end = span(work, part)
            for n in range(begin, end):
                for c in range(first, last):
                    at = (n * C + c) * S * size
                    x, grad, grad_x = work.x + at, work.grad + at, work.out + at
                    grad_residual = work.grad_residual + at
                    high, a = coefficient(work, CENTRE, c), coefficient(work, SCALE, c)
                    b = coefficient(work, SHIFT, c)
                    k1, k2 = coefficient(work, K1, c), coefficient(work, K2, c)
                    for i in range(S):
                        d = x_at(x, i) - high
                        if added:
                            g = grad_residual_at(grad_residual, i)
                        else:
                            g = back_of(d * a + b, slope, grad_at(grad, i))
                        write(grad_x, i, a * g + (k2 * d + k1) if training else a * g)

        return descend

    return descend_by
