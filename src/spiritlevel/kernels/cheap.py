"""The passes of the second half of a Ghost module, from the first convolution's output on.

With x that output, channels-last, and * a depthwise 3x3 convolution (Han et al. 2020, section 3.2):

    p = act(bn(x)),  c = p * kernel,  out = [p, act(bn'(c))] [+ residual]

Only x is read and only `out` is written: each pass makes p anew, row by row, in a ring of rows that
the first cache holds, and c from it, in registers. So neither is in memory, nor kept for backward.

    tally    mean and squares of c
    join     out
    reduce   g = act'(...) of out's second gradient;  sum g and sum g (c - mean)
    unjoin   dc, then the gradient of p, through its activation: what reaches bn; its sums, and the
             gradient of the kernel

A chunk is some channels of one image, so that each is the same on any number of threads.
"""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np

from spiritlevel.kernels.channels import K1, K2, blend
from spiritlevel.kernels.compiled import array, finite, jit, naming
from spiritlevel.kernels.vectors import over

__all__ = ["passes", "scratch"]

_ROWS = 4
"""Of a ring."""
_RINGS = 2 * _ROWS
"""Rows of a chunk's two rings, of p and of the gradient of c."""
_PER_CHANNEL = 12
"""Numbers that a chunk has for each of its channels, beside the rings: those of `_Chunk`."""


def scratch(width: int, channels: int) -> int:
    """Bytes of float32 that a chunk of so many channels needs."""
    return 4 * channels * (_RINGS * (width + 2) + _PER_CHANNEL)


# Addresses but for width, height, count, and bytes from one position to the next: of x, of out
# and its gradient (stride), of a ring (pitch), and from one row of the kernel to the next (reach).
_Chunk = namedtuple(
    "_Chunk",
    "width height count step stride pitch reach x out residual grad to ring rest kernel sums "
    "high a b high2 a2 b2 k1 k2 centre total square floor",
)


def passes(kind: str) -> dict[str, Any]:
    """Each pass by its name, for elements of `kind`, "f32" or "bf16".

    The activation is a relu where the work's `slope` is 0, and none where it is minus infinity:
    what is not above it becomes it.
    """
    with naming("cheap", kind):
        of = _parts(kind)
        rows, add = _rows(of, kind), _adding(of)
        return {
            "tally": _tallying(of, rows),
            "join": _joining(of, rows),
            "reduce": _reducing(of, rows, add),
            "unjoin": _unjoining(of, rows, add),
            "settle_before": _settling_before(of),
        }


def _parts(kind: str) -> SimpleNamespace:
    """What all passes begin with."""
    size = np.int64(4 if kind == "f32" else 2)
    given, _, _ = array("given", np.float32)
    of_channel, _, _ = array("per_channel", np.float64)
    number, put_number, _ = array("first", np.float32)
    fields = _Chunk

    @jit
    def normal(mean_at, var_at, weight_at, bias_at, eps, first, count, high, a, b):
        """The coefficients of a norm, as `channels` makes them."""
        for i in range(count):
            mean, c = of_channel(mean_at, first + i), first + i
            weight = float(given(weight_at, c)) if weight_at != 0 else 1.0
            bias = float(given(bias_at, c)) if bias_at != 0 else 0.0
            scale = weight / np.sqrt(of_channel(var_at, c) + eps)
            low = mean - float(np.float32(mean)) if finite(mean) else 0.0
            put_number(high, i, np.float32(mean))
            put_number(a, i, np.float32(scale))
            put_number(b, i, np.float32(bias - low * scale))

    @jit
    def blank(at, ring):
        """Zeros in front of and behind each row of a ring, and all of row -1."""
        line = (at.width + 2) * at.pitch // 4
        for r in range(4):
            for i in range(at.count):
                put_number(ring, r * line + i, np.float32(0))
                put_number(ring, (r + 1) * line - at.count + i, np.float32(0))

    @jit
    def zeros(at, ring):
        for i in range((at.width + 2) * at.pitch // 4):
            put_number(ring, i, np.float32(0))

    @jit
    def row(at, ring, r):
        """Where row r of a ring begins, with the zeros in front of it."""
        return ring + ((r + 1) % 4) * (at.width + 2) * at.pitch

    @jit
    def begin(work, part, first, last):
        channels, count = work.C, last - first
        groups = (channels + work.group_0 - 1) // work.group_0
        chunk = part * groups + first // work.group_0
        line = (work.width + 2) * count * 4
        ring = work.rings + chunk * work.ring
        rest = ring + 4 * line
        each = rest + 4 * line
        own = count * 4
        start = part * work.height * work.width
        residual = work.residual
        if residual != 0:
            residual += (start * 2 * channels + first) * size
        at = fields(
            *(work.width, work.height, count, channels * size, 2 * channels * size, own),
            channels * 4,
            work.x + (start * channels + first) * size,
            work.out + (start * 2 * channels + first) * size,
            residual,
            work.grad + (start * 2 * channels + first) * size,
            work.grad_residual + (start * channels + first) * size,
            *(ring, rest),
            work.kernel + first * 4,
            work.kernel_sums + (part * 9 * channels + first) * 4,
            *(each, each + own, each + 2 * own, each + 3 * own, each + 4 * own, each + 5 * own),
            work.coefficients + (K1 * channels + first) * 4,
            work.coefficients + (K2 * channels + first) * 4,
            *(each + 6 * own, each + 7 * own, each + 8 * own),
            np.float32(work.slope),
        )
        normal(
            *(work.mean_before, work.var_before, work.weight_before, work.bias_before),
            *(work.eps_before, first, count, at.high, at.a, at.b),
        )
        return at

    @jit
    def second(work, first, at):
        """The coefficients of the norm of c."""
        normal(
            *(work.mean, work.var, work.weight, work.bias, work.eps),
            *(first, at.count, at.high2, at.a2, at.b2),
        )

    return SimpleNamespace(
        **{"size": size, "begin": begin, "second": second, "blank": blank, "zeros": zeros},
        **{"row": row, "number": number, "put_number": put_number},
    )


def _rows(of: SimpleNamespace, kind: str) -> SimpleNamespace:
    """What is done to a row, for one vector of channels."""
    size, row = of.size, of.row

    def filling(v: Any) -> Any:
        @jit
        def fill(at, r, _rows, _other, j):
            """p into its ring."""
            centre, scale = v.numbers(at.high + 4 * j), v.numbers(at.a + 4 * j)
            shift, floor = v.numbers(at.b + 4 * j), v.splat(at.floor)
            x = at.x + r * at.width * at.step + j * size
            to = row(at, at.ring, r) + at.pitch + 4 * j
            for _ in range(at.width):
                z = v.fma(v.sub(v.load(x), centre), scale, shift)
                v.keep(to, v.above(z, floor, z, floor))
                x += at.step
                to += at.pitch

        return fill

    def taps(v: Any) -> Any:
        @jit
        def sum_of(p, q, s, pitch, k):
            """Nine neighbours, the first three from p on, times nine numbers."""
            y = v.mul(v.numbers(p), k[0])
            y = v.fma(v.numbers(p + pitch), k[1], y)
            y = v.fma(v.numbers(p + 2 * pitch), k[2], y)
            y = v.fma(v.numbers(q), k[3], y)
            y = v.fma(v.numbers(q + pitch), k[4], y)
            y = v.fma(v.numbers(q + 2 * pitch), k[5], y)
            y = v.fma(v.numbers(s), k[6], y)
            y = v.fma(v.numbers(s + pitch), k[7], y)
            return v.fma(v.numbers(s + 2 * pitch), k[8], y)

        return sum_of

    def nine(v: Any) -> Any:
        @jit
        def load(k, reach):
            return (
                *(v.numbers(k), v.numbers(k + reach), v.numbers(k + 2 * reach)),
                *(v.numbers(k + 3 * reach), v.numbers(k + 4 * reach), v.numbers(k + 5 * reach)),
                *(v.numbers(k + 6 * reach), v.numbers(k + 7 * reach), v.numbers(k + 8 * reach)),
            )

        return load

    def tallying(v: Any) -> Any:
        sum_of, load = taps(v), nine(v)

        @jit
        def tally(at, r, _rows, _other, j):
            """Sum, and sum of squares, of the distances of a row of c from its centres."""
            k, centre = load(at.kernel + 4 * j, at.reach), v.numbers(at.centre + 4 * j)
            p, q = row(at, at.ring, r - 1) + 4 * j, row(at, at.ring, r) + 4 * j
            s = row(at, at.ring, r + 1) + 4 * j
            total = square = v.splat(np.float32(0))
            for i in range(at.width):
                on = i * at.pitch
                d = v.sub(sum_of(p + on, q + on, s + on, at.pitch, k), centre)
                total = v.add(total, d)
                square = v.fma(d, d, square)
            v.keep(at.total + 4 * j, total)
            v.keep(at.square + 4 * j, square)

        return tally

    def joining(v: Any) -> Any:
        sum_of, load = taps(v), nine(v)

        @jit
        def join(at, r, _rows, _other, j):
            k = load(at.kernel + 4 * j, at.reach)
            centre, scale = v.numbers(at.high2 + 4 * j), v.numbers(at.a2 + 4 * j)
            shift, floor = v.numbers(at.b2 + 4 * j), v.splat(at.floor)
            p, q = row(at, at.ring, r - 1) + 4 * j, row(at, at.ring, r) + 4 * j
            s = row(at, at.ring, r + 1) + 4 * j
            off = r * at.width * at.stride + j * size
            half = at.stride // 2
            for i in range(at.width):
                on = i * at.pitch
                y = sum_of(p + on, q + on, s + on, at.pitch, k)
                z = v.fma(v.sub(y, centre), scale, shift)
                z = v.above(z, floor, z, floor)
                first = v.numbers(q + on + at.pitch)
                if at.residual != 0:
                    first = v.add(first, v.load(at.residual + off))
                    z = v.add(z, v.load(at.residual + off + half))
                v.store(at.out + off, first)
                v.store(at.out + off + half, z)
                off += at.stride

        return join

    def reducing(v: Any) -> Any:
        sum_of, load = taps(v), nine(v)

        @jit
        def reduce(at, r, _rows, _other, j):
            k = load(at.kernel + 4 * j, at.reach)
            centre, scale = v.numbers(at.high2 + 4 * j), v.numbers(at.a2 + 4 * j)
            shift, floor = v.numbers(at.b2 + 4 * j), v.splat(at.floor)
            p, q = row(at, at.ring, r - 1) + 4 * j, row(at, at.ring, r) + 4 * j
            s = row(at, at.ring, r + 1) + 4 * j
            grad = at.grad + r * at.width * at.stride + at.stride // 2 + j * size
            zero = total = square = v.splat(np.float32(0))
            for i in range(at.width):
                on = i * at.pitch
                d = v.sub(sum_of(p + on, q + on, s + on, at.pitch, k), centre)
                g = v.above(v.fma(d, scale, shift), floor, v.load(grad), zero)
                total = v.add(total, g)
                square = v.fma(g, d, square)
                grad += at.stride
            v.keep(at.total + 4 * j, total)
            v.keep(at.square + 4 * j, square)

        return reduce

    def descending(v: Any) -> Any:
        sum_of, load = taps(v), nine(v)

        @jit
        def descend(at, r, _rows, _other, j):
            """The gradient of c into its ring."""
            k = load(at.kernel + 4 * j, at.reach)
            centre, scale = v.numbers(at.high2 + 4 * j), v.numbers(at.a2 + 4 * j)
            shift, floor = v.numbers(at.b2 + 4 * j), v.splat(at.floor)
            k1, k2 = v.numbers(at.k1 + 4 * j), v.numbers(at.k2 + 4 * j)
            zero = v.splat(np.float32(0))
            p, q = row(at, at.ring, r - 1) + 4 * j, row(at, at.ring, r) + 4 * j
            s = row(at, at.ring, r + 1) + 4 * j
            grad = at.grad + r * at.width * at.stride + at.stride // 2 + j * size
            to = row(at, at.rest, r) + at.pitch + 4 * j
            for i in range(at.width):
                on = i * at.pitch
                d = v.sub(sum_of(p + on, q + on, s + on, at.pitch, k), centre)
                g = v.above(v.fma(d, scale, shift), floor, v.load(grad), zero)
                v.keep(to + on, v.fma(scale, g, v.fma(k2, d, k1)))
                grad += at.stride

        return descend

    def weighing(v: Any) -> Any:
        @jit
        def weigh(at, r, _rows, _other, j):
            """What a row adds to the gradient of the kernel."""
            p, q = row(at, at.ring, r - 1) + 4 * j, row(at, at.ring, r) + 4 * j
            s = row(at, at.ring, r + 1) + 4 * j
            found = row(at, at.rest, r) + at.pitch + 4 * j
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = v.splat(np.float32(0))
            pitch = at.pitch
            for _ in range(at.width):
                g = v.numbers(found)
                a0 = v.fma(g, v.numbers(p), a0)
                a1 = v.fma(g, v.numbers(p + pitch), a1)
                a2 = v.fma(g, v.numbers(p + 2 * pitch), a2)
                a3 = v.fma(g, v.numbers(q), a3)
                a4 = v.fma(g, v.numbers(q + pitch), a4)
                a5 = v.fma(g, v.numbers(q + 2 * pitch), a5)
                a6 = v.fma(g, v.numbers(s), a6)
                a7 = v.fma(g, v.numbers(s + pitch), a7)
                a8 = v.fma(g, v.numbers(s + 2 * pitch), a8)
                p += pitch
                q += pitch
                s += pitch
                found += pitch
            to = at.sums + 4 * j
            for a in (a0, a1, a2, a3, a4, a5, a6, a7, a8):
                v.keep(to, v.add(a, v.numbers(to)))
                to += at.reach

        return weigh

    def returning(v: Any) -> Any:
        sum_of, load = taps(v), nine(v)

        @jit
        def back(at, r, _rows, _other, j):
            """The gradient that reaches the first norm, and its sums."""
            w = load(at.kernel + 4 * j, at.reach)
            k = (w[8], w[7], w[6], w[5], w[4], w[3], w[2], w[1], w[0])
            centre, floor = v.numbers(at.high + 4 * j), v.splat(at.floor)
            p, q = row(at, at.rest, r - 1) + 4 * j, row(at, at.rest, r) + 4 * j
            s = row(at, at.rest, r + 1) + 4 * j
            made = row(at, at.ring, r) + at.pitch + 4 * j
            grad = at.grad + r * at.width * at.stride + j * size
            x = at.x + r * at.width * at.step + j * size
            to = at.to + r * at.width * at.step + j * size
            zero = total = square = v.splat(np.float32(0))
            for i in range(at.width):
                on = i * at.pitch
                g = v.add(sum_of(p + on, q + on, s + on, at.pitch, k), v.load(grad))
                g = v.above(v.numbers(made + on), floor, g, zero)
                v.store(to, g)
                total = v.add(total, g)
                square = v.fma(g, v.sub(v.load(x), centre), square)
                grad += at.stride
                x += at.step
                to += at.step
            v.keep(at.total + 4 * j, total)
            v.keep(at.square + 4 * j, square)

        return back

    return SimpleNamespace(
        fill=over("fill", kind, filling),
        tally=over("tally", kind, tallying),
        join=over("join", kind, joining),
        reduce=over("reduce", kind, reducing),
        descend=over("descend", kind, descending),
        weigh=over("weigh", kind, weighing),
        back=over("back", kind, returning),
    )


def _tallying(of: SimpleNamespace, rows: SimpleNamespace) -> Any:
    begin, blank, zeros, row, number = of.begin, of.blank, of.zeros, of.row, of.number
    put_number, fill, tally_row = of.put_number, rows.fill, rows.tally
    sum_at, put_sum, _ = array("sums", np.float64)
    product_at, put_product, _ = array("products", np.float64)

    @jit
    def merge(at, r, means, squares):
        """A row's mean and squares into those of the rows before, as Chan does."""
        n, seen = float(at.width), float(r * at.width)
        share = n / (seen + n)
        for i in range(at.count):
            off = float(number(at.total, i)) / n
            mean = float(number(at.centre, i)) + off
            square = float(number(at.square, i)) - off * off * n
            if r:
                before = sum_at(means, i)
                delta = mean - before
                square += product_at(squares, i) + delta * delta * seen * share
                mean = blend(before, mean, share)
            put_sum(means, i, mean)
            put_product(squares, i, square)
            put_number(at.centre, i, np.float32(mean))

    @jit
    def tally(work, part, first, last):
        at = begin(work, part, first, last)
        means = work.partials + (2 * part * work.C + first) * 8
        squares = means + work.C * 8
        blank(at, at.ring)
        zeros(at, row(at, at.ring, -1))
        for i in range(at.count):
            put_number(at.centre, i, np.float32(0))
        for r in range(at.height + 1):
            if r < at.height:
                fill(at, r, 1, 0)
            else:
                zeros(at, row(at, at.ring, r))
            if r == 1:  # only for centres: squares are taken of distances from a mean
                tally_row(at, 0, 1, 0)
                for i in range(at.count):
                    put_number(at.centre, i, number(at.total, i) / np.float32(at.width))
            if r:
                tally_row(at, r - 1, 1, 0)
                merge(at, r - 1, means, squares)

    return tally


def _joining(of: SimpleNamespace, rows: SimpleNamespace) -> Any:
    begin, second, blank, zeros, row = of.begin, of.second, of.blank, of.zeros, of.row
    fill, join_row = rows.fill, rows.join

    @jit
    def join(work, part, first, last):
        at = begin(work, part, first, last)
        second(work, first, at)
        blank(at, at.ring)
        zeros(at, row(at, at.ring, -1))
        for r in range(at.height + 1):
            if r < at.height:
                fill(at, r, 1, 0)
            else:
                zeros(at, row(at, at.ring, r))
            if r:
                join_row(at, r - 1, 1, 0)

    return join


def _adding(of: SimpleNamespace) -> Any:
    number = of.number
    sum_at, put_sum, _ = array("sums", np.float64)
    product_at, put_product, _ = array("products", np.float64)

    @jit
    def add(at, first_row, totals, products):
        """A row's sums to those of the rows before."""
        for i in range(at.count):
            before = 0.0 if first_row else sum_at(totals, i)
            put_sum(totals, i, before + float(number(at.total, i)))
            before = 0.0 if first_row else product_at(products, i)
            put_product(products, i, before + float(number(at.square, i)))

    return add


def _reducing(of: SimpleNamespace, rows: SimpleNamespace, add: Any) -> Any:
    begin, second, blank, zeros, row = of.begin, of.second, of.blank, of.zeros, of.row
    fill, reduce_row = rows.fill, rows.reduce

    @jit
    def reduce(work, part, first, last):
        at = begin(work, part, first, last)
        second(work, first, at)
        totals = work.partials + (2 * part * work.C + first) * 8
        blank(at, at.ring)
        zeros(at, row(at, at.ring, -1))
        for r in range(at.height + 1):
            if r < at.height:
                fill(at, r, 1, 0)
            else:
                zeros(at, row(at, at.ring, r))
            if r:
                reduce_row(at, r - 1, 1, 0)
                add(at, r == 1, totals, totals + work.C * 8)

    return reduce


def _unjoining(of: SimpleNamespace, rows: SimpleNamespace, add: Any) -> Any:
    begin, second, blank, zeros, row = of.begin, of.second, of.blank, of.zeros, of.row
    fill, descend, weigh, back = rows.fill, rows.descend, rows.weigh, rows.back
    put_number = of.put_number

    @jit
    def unjoin(work, part, first, last):
        at = begin(work, part, first, last)
        second(work, first, at)
        totals = work.partials_before + (2 * part * work.C + first) * 8
        blank(at, at.ring)
        blank(at, at.rest)
        zeros(at, row(at, at.ring, -1))
        zeros(at, row(at, at.rest, -1))
        for k in range(9):
            for i in range(at.count):
                put_number(at.sums + k * at.reach, i, np.float32(0))
        for r in range(at.height + 2):
            if r < at.height:
                fill(at, r, 1, 0)
            elif r == at.height:
                zeros(at, row(at, at.ring, r))
            else:
                zeros(at, row(at, at.rest, at.height))
            if 0 < r <= at.height:
                descend(at, r - 1, 1, 0)
                weigh(at, r - 1, 1, 0)
            if r > 1:
                back(at, r - 2, 1, 0)
                add(at, r == 2, totals, totals + work.C * 8)

    return unjoin


def _settling_before(of: SimpleNamespace) -> Any:
    number, put_number = of.number, of.put_number
    sum_at, _, _ = array("sums", np.float64)
    of_channel, _, _ = array("per_channel", np.float64)
    _, put_given, _ = array("given", np.float32)

    @jit
    def settle_before(work, _part, first, last):
        """From the sums to the gradients of the first norm's weight and bias, and of the kernel."""
        for c in range(first, last):
            total, product = 0.0, 0.0
            for part in range(work.parts):
                total += sum_at(work.partials_before, 2 * part * work.C + c)
                product += sum_at(work.partials_before, (2 * part + 1) * work.C + c)
            mean = of_channel(work.mean_before, c)
            low = mean - float(np.float32(mean)) if finite(mean) else 0.0
            deviation = np.sqrt(of_channel(work.var_before, c) + work.eps_before)
            put_given(work.grad_weight_before, c, np.float32((product - low * total) / deviation))
            put_given(work.grad_bias_before, c, np.float32(total))
            for k in range(9):
                found = 0.0
                for part in range(work.parts):
                    found += float(number(work.kernel_sums, (part * 9 + k) * work.C + c))
                put_number(work.grad_kernel, c * 9 + k, np.float32(found))

    return settle_before
