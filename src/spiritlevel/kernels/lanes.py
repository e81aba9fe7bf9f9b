"""The passes over lanes: rows of numbers in which each column, a lane, belongs to one channel.

Channels-last tensors are such rows of C lanes, and (N, C) too; where C is small, `fold` pixels make
one row. Contiguous ones with few pixels are rows of C times `spread` lanes. Sums run down the rows,
four at a time: each is then read and written once for four numbers.

`applying` and `descending` are yet to be told how they write: into the cache or past it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from spiritlevel.kernels.channels import CENTRE, K1, K2, SCALE, SHIFT, blend
from spiritlevel.kernels.compiled import finite, jit, span

__all__ = ["applying", "collecting", "descending", "reducing"]

_BLOCK = 16384
"""Elements that are still in the second cache when they are looked at again."""


@jit
def cut(work, part, first, last):
    """Lanes in all, and of these channels; the first of those; the first and last row."""
    lanes = work.fold * work.C * work.spread
    # Where rows are folded a chunk has all channels.
    width = work.fold * (last - first) * work.spread
    return lanes, width, first * work.spread, *span(work, part)


def collecting(read: SimpleNamespace) -> Any:
    size, number_size, x_at = read.size, read.number_size, read.x
    first_at, second_at, centre_at = read.first, read.second, read.centre
    sum_at, put_sum, product_at, put_product = read.sums
    centres, deviations = _centres(read), _deviations(read)

    @jit
    def exactly(x, row, count, i):
        """Mean and sum of squares in float64: for a block that float32 has not the range for."""
        total, square = 0.0, 0.0
        for m in range(count):
            total += float(x_at(x + m * row, i))
        mean = total / count
        for m in range(count):
            square += (float(x_at(x + m * row, i)) - mean) ** 2
        return mean, square

    @jit
    def collect(work, part, first, last):
        lanes, width, at, begin, end = cut(work, part, first, last)
        means = work.partials + (2 * part * lanes + at) * 8
        squares = means + lanes * 8
        rest = work.sums + (3 * part * lanes + at) * number_size
        square, centre = rest + lanes * number_size, rest + 2 * lanes * number_size
        row, step, seen = lanes * size, max(16, _BLOCK // width), 0
        for n in range(begin, end, step):
            x, count = work.x + n * row + at * size, min(step, end - n)
            centres(x, row, count, width, centre)
            deviations(x, row, count, width, centre, rest, square)
            beyond, part_of = 0, 1.0 / count
            for i in range(width):
                beyond += 0 if finite(second_at(square, i)) else 1
            if seen == 0 and beyond == 0:
                for i in range(width):
                    off = float(first_at(rest, i)) * part_of
                    put_sum(means, i, float(centre_at(centre, i)) + off)
                    put_product(squares, i, float(second_at(square, i)) - off * off * count)
            else:
                share = count / (seen + count)
                for i in range(width):
                    if beyond == 0:
                        off = float(first_at(rest, i)) * part_of
                        mean = float(centre_at(centre, i)) + off
                        found = float(second_at(square, i)) - off * off * count
                    else:
                        mean, found = exactly(x, row, count, i)
                    before = sum_at(means, i) if seen else 0.0
                    delta = mean - before
                    found += delta * delta * seen * share
                    if seen:
                        found += product_at(squares, i)
                    put_product(squares, i, found)
                    put_sum(means, i, blend(before, mean, share))
            seen += count

    return collect


def _centres(read: SimpleNamespace) -> Any:
    number, x_at, zero = read.number, read.x, read.number(0)
    centre_at, put_centre = read.centre, read.put_centre

    @jit
    def centres(x, row, count, width, total):
        """The mean of each lane."""
        for i in range(width):
            put_centre(total, i, zero)
        fours = count // 4 * 4
        for m in range(0, fours, 4):
            p = x + m * row
            q, r, s = p + row, p + 2 * row, p + 3 * row
            for i in range(width):
                found = (x_at(p, i) + x_at(q, i)) + (x_at(r, i) + x_at(s, i))
                put_centre(total, i, centre_at(total, i) + found)
        for m in range(fours, count):
            for i in range(width):
                put_centre(total, i, centre_at(total, i) + x_at(x + m * row, i))
        share = number(1) / number(count)
        for i in range(width):
            put_centre(total, i, centre_at(total, i) * share)

    return centres


def _deviations(read: SimpleNamespace) -> Any:
    x_at, centre_at, zero = read.x, read.centre, read.number(0)
    first_at, put_first, second_at = read.first, read.put_first, read.second
    put_second = read.put_second

    @jit
    def deviations(x, row, count, width, centre, rest, square):
        """Sum, and sum of squares, of the distances from the centres."""
        for i in range(width):
            put_first(rest, i, zero)
            put_second(square, i, zero)
        fours = count // 4 * 4
        for m in range(0, fours, 4):
            p = x + m * row
            q, r, s = p + row, p + 2 * row, p + 3 * row
            for i in range(width):
                high = centre_at(centre, i)
                d0, d1, d2, d3 = (
                    x_at(p, i) - high,
                    x_at(q, i) - high,
                    x_at(r, i) - high,
                    x_at(s, i) - high,
                )
                put_first(rest, i, first_at(rest, i) + ((d0 + d1) + (d2 + d3)))
                found = (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
                put_second(square, i, second_at(square, i) + found)
        for m in range(fours, count):
            for i in range(width):
                d = x_at(x + m * row, i) - centre_at(centre, i)
                put_first(rest, i, first_at(rest, i) + d)
                put_second(square, i, second_at(square, i) + d * d)

    return deviations


def applying(read: SimpleNamespace, act_of: Any, add: str) -> Any:
    number, size, coefficients = read.number, read.size, read.coefficients
    centre_at, scale_at, shift_at = read.centre, read.scale, read.shift
    x_at, residual_at, adds = read.x, read.residual, add == "add"

    def apply_by(write):
        @jit
        def apply(work, part, first, last):
            lanes, width, at, begin, end = cut(work, part, first, last)
            slope = number(work.slope)
            centre, scale = coefficients(work, CENTRE, first), coefficients(work, SCALE, first)
            shift = coefficients(work, SHIFT, first)
            for n in range(begin, end):
                offset = (n * lanes + at) * size
                x, y, residual = work.x + offset, work.out + offset, work.residual + offset
                for i in range(width):
                    z = (x_at(x, i) - centre_at(centre, i)) * scale_at(scale, i)
                    z += shift_at(shift, i)
                    if adds:
                        z += residual_at(residual, i)
                    write(y, i, act_of(z, slope))

        return apply

    return apply_by


def _through(read: SimpleNamespace, back_of: Any, add: str) -> Any:
    x_at, grad_at, residual_at = read.x, read.grad, read.residual
    put_grad_residual, adds, masks = read.put_grad_residual, add == "add", add == "mask"

    @jit
    def one(x, grad, residual, grad_residual, i, centre, scale, shift, slope):
        """Of one element: its distance from the centre, and the gradient through activation."""
        d = x_at(x, i) - centre
        z = residual_at(residual, i) if masks else d * scale + shift
        if adds:
            z += residual_at(residual, i)
        g = back_of(z, slope, grad_at(grad, i))
        if adds or masks:
            put_grad_residual(grad_residual, i, g)
        return d, g

    return one


def reducing(read: SimpleNamespace, back_of: Any, add: str) -> Any:
    number, size, coefficients = read.number, read.size, read.coefficients
    number_size, zero, one = read.number_size, read.number(0), _through(read, back_of, add)
    centre_at, scale_at, shift_at = read.centre, read.scale, read.shift
    first_at, put_first, second_at = read.first, read.put_first, read.second
    put_second = read.put_second
    sum_at, put_sum, product_at, put_product = read.sums

    @jit
    def reduce(work, part, first, last):
        lanes, width, at, begin, end = cut(work, part, first, last)
        slope, row = number(work.slope), lanes * size
        centre, scale = coefficients(work, CENTRE, first), coefficients(work, SCALE, first)
        shift = coefficients(work, SHIFT, first)
        totals = work.partials + (2 * part * lanes + at) * 8
        products = totals + lanes * 8
        for i in range(width):
            put_sum(totals, i, 0.0)
            put_product(products, i, 0.0)
        total = work.sums + (3 * part * lanes + at) * number_size
        product, step = total + lanes * number_size, max(16, _BLOCK // width)
        x, grad, add_, to = work.x, work.grad, work.residual, work.grad_residual
        for n in range(begin, end, step):
            for i in range(width):
                put_first(total, i, zero)
                put_second(product, i, zero)
            stop = min(n + step, end)
            fours = n + (stop - n) // 4 * 4
            for m in range(n, fours, 4):
                p = m * row + at * size
                q, r, s = p + row, p + 2 * row, p + 3 * row
                for i in range(width):
                    high, a, b = centre_at(centre, i), scale_at(scale, i), shift_at(shift, i)
                    d0, g0 = one(x + p, grad + p, add_ + p, to + p, i, high, a, b, slope)
                    d1, g1 = one(x + q, grad + q, add_ + q, to + q, i, high, a, b, slope)
                    d2, g2 = one(x + r, grad + r, add_ + r, to + r, i, high, a, b, slope)
                    d3, g3 = one(x + s, grad + s, add_ + s, to + s, i, high, a, b, slope)
                    put_first(total, i, first_at(total, i) + ((g0 + g1) + (g2 + g3)))
                    found = (g0 * d0 + g1 * d1) + (g2 * d2 + g3 * d3)
                    put_second(product, i, second_at(product, i) + found)
            for m in range(fours, stop):
                p = m * row + at * size
                for i in range(width):
                    high, a, b = centre_at(centre, i), scale_at(scale, i), shift_at(shift, i)
                    d, g = one(x + p, grad + p, add_ + p, to + p, i, high, a, b, slope)
                    put_first(total, i, first_at(total, i) + g)
                    put_second(product, i, second_at(product, i) + g * d)
            for i in range(width):
                put_sum(totals, i, sum_at(totals, i) + float(first_at(total, i)))
                put_product(products, i, product_at(products, i) + float(second_at(product, i)))

    return reduce


def descending(read: SimpleNamespace, back_of: Any, add: str) -> Any:
    number, size, coefficients = read.number, read.size, read.coefficients
    x_at, grad_at, grad_residual_at = read.x, read.grad, read.grad_residual
    centre_at, scale_at, shift_at = read.centre, read.scale, read.shift
    k1_at, k2_at, added = read.k1, read.k2, add != ""

    def descend_by(write):
        @jit
        def descend(work, part, first, last):
            lanes, width, at, begin, end = cut(work, part, first, last)
            slope, training = number(work.slope), work.training != 0
            centre, scale = coefficients(work, CENTRE, first), coefficients(work, SCALE, first)
            shift = coefficients(work, SHIFT, first)
            k1, k2 = coefficients(work, K1, first), coefficients(work, K2, first)
            for n in range(begin, end):
                offset = (n * lanes + at) * size
                x, grad, grad_x = work.x + offset, work.grad + offset, work.out + offset
                grad_residual = work.grad_residual + offset
                for i in range(width):
                    d, a = x_at(x, i) - centre_at(centre, i), scale_at(scale, i)
                    if added:
                        g = grad_residual_at(grad_residual, i)
                    else:
                        g = back_of(d * a + shift_at(shift, i), slope, grad_at(grad, i))
                    step = k2_at(k2, i) * d + k1_at(k1, i)
                    write(grad_x, i, a * g + step if training else a * g)

        return descend

    return descend_by
