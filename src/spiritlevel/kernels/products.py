"""A 1x1 convolution and the batch norm after it, where one has the other's numbers in cache.

On channels-last tensors the convolution is a product of matrices, rows of positions times weights.

    produce   rows of y = x weights, then their mean and squares, while they are in the cache
    consume   rows of dy = a g + k2 (y - mean) + k1, which is nowhere else: from them rows of the
              gradient of x, dy weights, and what they add to the gradient of the weights, dy x

A chunk has some of the rows, and takes a few of them at a time.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from spiritlevel.kernels.channels import low_of, merge_rows
from spiritlevel.kernels.compiled import array, jit, naming, size_of, span
from spiritlevel.kernels.vectors import adding_parts, instructions, over

__all__ = ["passes", "products", "scratch"]

_TALL = {16: 6, 8: 12, 4: 12, 1: 12}
"""Columns of a tile -> its rows: as many sums as registers hold, beside what is multiplied."""


def scratch(rows: int, channels: int, inner: int) -> int:
    """Bytes that a chunk needs which takes so many rows at a time, of y and of x."""
    return 4 * channels * (rows + 7) + 4 * inner * rows


def _tile(rows: int, columns: int, kinds: str) -> Any:
    """c[r, j] = (c[r, j] if more) + sum over k of a[r, k] b[k, j], for a few rows and columns.

    `kinds` are those of a, b and c. Of the arguments the steps are in bytes: of a from row to row
    and from k to k, of b from k to k, of c from row to row. The next rows of a and c are brought
    nearer meanwhile, and those that lie `beside` those of c.
    """
    lanes = min(columns, 8)
    parts, word = columns // lanes, ir.IntType(64)
    a_kind, b_kind, c_kind = kinds.split()
    one, other, of = (
        instructions(1, a_kind),
        instructions(lanes, b_kind),
        instructions(lanes, c_kind),
    )
    size = {"f32": 4 * lanes, "bf16": 2 * lanes}

    def after(builder: Any, start: Any, step: Any, count: Any) -> Any:
        count = count if isinstance(count, ir.Value) else ir.Constant(word, count)
        return builder.add(start, builder.mul(step, count))

    def beside(builder: Any, start: Any, part: int, kind: str) -> Any:
        return builder.add(start, ir.Constant(word, part * size[kind]))

    def codegen(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        a, row, inner, b, step, c, c_row, count, more, beside_c = given
        next_c = after(builder, c, c_row, rows)
        for r in range(rows):
            to = after(builder, next_c, c_row, r)
            one.fetch(builder, to, True)
            one.fetch(builder, builder.add(to, beside_c), False)
        next_a, some = after(builder, a, row, rows), ir.Constant(word, 4 * rows)
        sums = [
            [cgutils.alloca_once_value(builder, of.zero) for _ in range(parts)] for _ in range(rows)
        ]
        with cgutils.for_range(builder, count, intp=word) as loop:
            one.fetch(builder, after(builder, next_a, some, loop.index), False)
            a_at, b_at = after(builder, a, inner, loop.index), after(builder, b, step, loop.index)
            numbers = [other.load(builder, beside(builder, b_at, p, b_kind)) for p in range(parts)]
            for r, each in enumerate(sums):
                factor = of.splat(builder, one.load(builder, after(builder, a_at, row, r)))
                for at, number in zip(each, numbers, strict=True):
                    builder.store(of.fma(builder, factor, number, builder.load(at)), at)
        adds = builder.icmp_signed("!=", more, ir.Constant(word, 0))
        for r, each in enumerate(sums):
            for p, at in enumerate(each):
                to = beside(builder, after(builder, c, c_row, r), p, c_kind)
                with builder.if_else(adds) as (yes, no):
                    with yes:
                        total = builder.fadd(builder.load(at), of.load(builder, to))
                        of.store(builder, to, total)
                    with no:
                        of.store(builder, to, builder.load(at))
        return context.get_dummy_value()

    signature = types.void(*[types.int64] * 10)
    return intrinsic(
        lambda _, a, row, inner, b, step, c, c_row, count, more, beside: (signature, codegen)
    )


@cache
def products(kinds: str) -> Any:
    """c = a b, or c += a b, of `rows` x `count` and `count` x `columns` numbers."""
    with naming("product", kinds):
        return _in_tiles(kinds)


def _in_tiles(kinds: str) -> Any:
    _, b_kind, c_kind = kinds.split()
    b_size, c_size = size_of(b_kind), size_of(c_kind)

    def strip(columns: int) -> Any:
        tall, several, one = (
            _TALL[columns],
            *(_tile(n, columns, kinds) for n in (_TALL[columns], 1)),
        )

        @jit
        def run(a, row, inner, b, step, c, c_row, rows, count, more, beside):
            i = 0
            while i + tall <= rows:
                several(a + i * row, row, inner, b, step, c + i * c_row, c_row, count, more, beside)
                i += tall
            while i < rows:
                one(a + i * row, row, inner, b, step, c + i * c_row, c_row, count, more, beside)
                i += 1

        return run

    strips = {}
    for columns in _TALL:
        with naming("strip", kinds, str(columns)):
            strips[columns] = strip(columns)
    wide, eight, four, single = (strips[columns] for columns in (16, 8, 4, 1))

    @jit
    def product(a, row, inner, b, step, c, c_row, rows, columns, count, more, beside):
        j = 0
        while j < columns:
            at, to = b + j * b_size, c + j * c_size
            if columns - j >= 16:
                wide(a, row, inner, at, step, to, c_row, rows, count, more, beside)
                j += 16
            elif columns - j >= 8:
                eight(a, row, inner, at, step, to, c_row, rows, count, more, beside)
                j += 8
            elif columns - j >= 4:
                four(a, row, inner, at, step, to, c_row, rows, count, more, beside)
                j += 4
            else:
                single(a, row, inner, at, step, to, c_row, rows, count, more, beside)
                j += 1

    return product


# Addresses, but for count (channels), and bytes from one row to the next: of x or y (step), of what
# reaches the norm (apart), and of dy (pitch).
_Wide = namedtuple("_Wide", "count step to")
_Tallied = namedtuple("_Tallied", "count step centre total square")
_Norm = namedtuple("_Norm", "count high a k1 k2")
_Descent = namedtuple("_Descent", "count step to high a k1 k2 apart pitch")


def passes(kind: str) -> dict[str, Any]:
    """Each pass by its name, for elements of `kind`, "f32" or "bf16"."""
    with naming("products", kind):
        widen = _widening(kind)
        return {
            "produce": _producing(kind, widen),
            "consume": _consuming(kind, widen),
            "settle_products": _settling_products(kind),
        }


def _widening(kind: str) -> Any:
    """Rows of x as float32, where they are not: a product reads them many times."""
    size = size_of(kind)

    def making(v: Any) -> Any:
        @jit
        def widen(at, x, rows, _other, j):
            on, to = x + j * size, at.to + 4 * j
            for _ in range(rows):
                v.keep(to, v.load(on))
                on += at.step
                to += 4 * at.count

        return widen

    return over("widen_rows", kind, making)


def _producing(kind: str, widen: Any) -> Any:
    size = size_of(kind)
    wide, tallied, product = _Wide, _Tallied, products(f"f32 f32 {kind}")
    narrow = kind != "f32"

    def tallying(v: Any) -> Any:
        @jit
        def tally(at, y, rows, seen, j):
            """Sum and sum of squares of the distances from the mean of the rows seen before."""
            start, zero = y + j * size, v.splat(np.float32(0))
            centre, total, square, on = v.numbers(at.centre + 4 * j), zero, zero, start
            if seen == 0:  # then from the mean of these
                for _ in range(rows):
                    total = v.add(total, v.load(on))
                    on += at.step
                centre = v.mul(total, v.splat(np.float32(1) / np.float32(rows)))
                v.keep(at.centre + 4 * j, centre)
                total, on = zero, start
            ahead = rows * at.step
            for _ in range(rows):
                v.claim(on + ahead)
                d = v.sub(v.load(on), centre)
                total = v.add(total, d)
                square = v.fma(d, d, square)
                on += at.step
            v.keep(at.total + 4 * j, total)
            v.keep(at.square + 4 * j, square)

        return tally

    tally = over("tally_rows", kind, tallying)

    @jit
    def produce(work, part, _first, _last):
        channels, inner = work.C, work.inner
        begin, end = span(work, part)
        own = work.rings + part * work.ring
        line, each = channels * size, channels * 4
        at = tallied(channels, line, own, own + each, own + 2 * each)
        widened = own + 7 * each
        means = work.partials + 2 * part * channels * 8
        for n in range(begin, end, work.height):
            rows = min(work.height, end - n)
            x, y = work.x + n * inner * size, work.out + n * line
            if narrow:
                widen(wide(inner, inner * size, widened), x, rows, 0)
                x = widened
            product(
                *(x, inner * 4, 4, work.kernel, each, y, line),
                *(rows, channels, inner, 0, 0),
            )
            tally(at, y, rows, n - begin)
            merge_rows(at, rows, n - begin, means, means + channels * 8)

    return produce


def _consuming(kind: str, widen: Any) -> Any:
    size = size_of(kind)
    to_x, to_weights = products(f"f32 f32 {kind}"), products("f32 f32 f32")
    wide, norm, descent, narrow = _Wide, _Norm, _Descent, kind != "f32"
    given, _, _ = array("given", np.float32)
    of_channel, _, _ = array("per_channel", np.float64)
    _, put_number, _ = array("first", np.float32)

    def descending(v: Any) -> Any:
        @jit
        def descend(at, y, rows, grad, j):
            """Rows of dy, from rows of y and of what reaches the norm."""
            centre, scale = v.numbers(at.high + 4 * j), v.numbers(at.a + 4 * j)
            k1, k2 = v.numbers(at.k1 + 4 * j), v.numbers(at.k2 + 4 * j)
            to, on, other = at.to + 4 * j, y + j * size, grad + j * size
            for _ in range(rows):
                v.fetch(on + rows * at.step)
                v.fetch(other + rows * at.apart)
                d, g = v.sub(v.load(on), centre), v.load(other)
                v.keep(to, v.fma(scale, g, v.fma(k2, d, k1)))
                on += at.step
                other += at.apart
                to += at.pitch

        return descend

    descend = over("descend_rows", kind, descending)

    @jit
    def lean(work, at):
        """The coefficients, from the gradients of the norm's weight and bias: as `channels`."""
        count = float(work.N)
        for i in range(at.count):
            mean = of_channel(work.mean_before, i)
            deviation = np.sqrt(of_channel(work.var_before, i) + work.eps_before)
            weight = float(given(work.weight_before, i)) if work.weight_before != 0 else 1.0
            scale = weight / deviation
            slope = -scale * float(given(work.grad_weight_before, i)) / (count * deviation)
            low = low_of(mean, np.float32(mean))
            k1 = -scale * float(given(work.grad_bias_before, i)) / count - low * slope
            put_number(at.high, i, np.float32(mean))
            put_number(at.a, i, np.float32(scale))
            put_number(at.k1, i, np.float32(k1))
            put_number(at.k2, i, np.float32(slope))

    @jit
    def share(own, dy, some, each, line):
        """Of the channels, those of one of `fold` norms that the same gradient reaches."""
        coefficients = own, own + each, own + 2 * each, own + 3 * each
        return descent(some, line, dy, *coefficients, some * size, each)

    @jit
    def consume(work, part, _first, _last):
        channels, inner = work.C, work.inner
        begin, end = span(work, part)
        own = work.rings + part * work.ring
        line, each, some = channels * size, channels * 4, channels // work.fold
        dy = own + 4 * each
        widened = own + (7 + work.height) * each
        lean(work, norm(channels, own, own + each, own + 2 * each, own + 3 * each))
        weights = work.kernel_sums + part * channels * inner * 4
        for n in range(begin, end, work.height):
            rows = min(work.height, end - n)
            x = work.residual + n * inner * size
            for k in range(work.fold):
                at = share(own + 4 * k * some, dy + 4 * k * some, some, each, line)
                descend(at, work.x + n * line + k * some * size, rows, work.grad + n * some * size)
            if work.out != 0:
                to_x(
                    *(dy, each, 4, work.kernel, inner * 4, work.out + n * inner * size),
                    *(inner * size, rows, inner, channels, 0, x - work.out - n * inner * size),
                )
            if narrow:
                widen(wide(inner, inner * size, widened), x, rows, 0)
                x = widened
            to_weights(
                *(dy, 4, each, x, inner * 4, weights, inner * 4),
                *(channels, inner, rows, n - begin, 0),
            )

    return consume


def _settling_products(kind: str) -> Any:
    add = adding_parts(f"weights_{kind}")

    @jit
    def settle_products(work, _part, first, last):
        """The gradient of the weights, of some channels, from those of the chunks."""
        start, step = 4 * first * work.inner, 4 * work.C * work.inner
        sums, to = work.kernel_sums + start, work.grad_kernel + start
        add((last - first) * work.inner, to, sums, step, work.parts)

    return settle_products
