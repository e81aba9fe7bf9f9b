"""Depthwise convolutions of any kernel and stride, on channels-last tensors.

    slide        rows of y
    slide_back   the gradient of x, where each position gathers what it is in; and of the kernel

A position at a time; by `halving` where a row is long and that knows the kernel.
A chunk is some channels of some images. Of these, what is read again is in the second cache.
Several kernels (`fold`) of one geometry take turns at each row: x is read once, each has a y of its
own, and the gradients of x are summed up.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from spiritlevel.kernels.compiled import array, jit, naming, size_of, span
from spiritlevel.kernels.halving import halving
from spiritlevel.kernels.vectors import adding_parts, over

__all__ = ["GEOMETRY", "passes"]

# Addresses but for the geometry, count (channels), step (bytes from one position to the next), and
# from one of the kernel's numbers to the next (reach); more: `to` has numbers already, to be added.
_Chunk = namedtuple(
    "_Chunk",
    "height width rows columns tall wide down across top left count step reach x y to kernel sums "
    "more",
)
GEOMETRY = _Chunk._fields[:10]
"""Of x, of y, of the kernel; the strides and the padding."""


@jit
def _over(number, step):
    """number // step, of which most are 1 or 2, and a division takes long."""
    if step == 1:
        return number
    return number >> 1 if step == 2 else number // step


@jit
def _beyond(number, step):
    """number % step."""
    return number - _over(number, step) * step


@jit
def _halves(at):
    """The kernel's side, where `halving` knows the convolution; else 0."""
    strides = at.down == 2 and at.across == 2
    known = (at.wide == 3 or at.wide == 5) and at.tall == at.wide
    middle = at.top == at.wide // 2 and at.left == at.top
    same = at.rows == (at.height + 1) // 2 and at.columns == (at.width + 1) // 2
    return at.wide if strides and known and middle and same and at.columns > 2 else 0


def passes(kind: str) -> dict[str, Any]:
    """Each pass by its name, for elements of `kind`, "f32" or "bf16"."""
    with naming("sliding", kind):
        begin = _beginning(kind)
        return {
            "slide": _sliding(kind, begin),
            "slide_back": _returning(kind, begin),
            "settle_kernel": _settling(kind),
        }


def _beginning(kind: str) -> Any:
    size, fields = size_of(kind), _Chunk
    number, _, _ = array("stages", np.int64)

    @jit
    def begin(work, image, first, last, x, y, to, sums, b):
        """The chunk, of one image and kernel; of the tensors x, y and to, y is the smaller."""
        at, channels = work.geometry, work.C
        height, width, rows, columns = number(at, 0), number(at, 1), number(at, 2), number(at, 3)
        large = (image * height * width * channels + first) * size
        small = ((b * work.N + image) * rows * columns * channels + first) * size
        own = b * work.inner * channels * 4
        return fields(
            *(height, width, rows, columns, number(at, 4), number(at, 5)),
            *(number(at, 6), number(at, 7), number(at, 8), number(at, 9)),
            *(last - first, channels * size, channels * 4),
            *(x + large, y + small, to + large, work.kernel + first * 4 + own, sums + own, b),
        )

    return begin


def _sliding(kind: str, begin: Any) -> Any:

    def making(v: Any) -> Any:
        @jit
        def cell(at, r, c, _other, j):
            e, f = r * at.down - at.top, c * at.across - at.left
            start, end = max(0, -f), min(at.wide, at.width - f)
            found = v.splat(np.float32(0))
            for k in range(max(0, -e), min(at.tall, at.height - e)):
                x = at.x + ((e + k) * at.width + f + start) * at.step + j * v.size
                factor = at.kernel + (k * at.wide + start) * at.reach + 4 * j
                for _ in range(start, end):
                    found = v.fma(v.load(x), v.numbers(factor), found)
                    x += at.step
                    factor += at.reach
            v.store(at.y + (r * at.columns + c) * at.step + j * v.size, found)

        return cell

    cell = over("cell", kind, making, wide=32)
    three, five = (halving(taps, kind).slide for taps in (3, 5))

    @jit
    def slide(work, part, first, last):
        start, stop = span(work, part)
        for image in range(start, stop):
            whole = begin(work, image, first, last, work.x, work.out, 0, 0, 0)
            quick = _halves(whole)
            for r in range(whole.rows):
                for b in range(work.fold):
                    at = begin(work, image, first, last, work.x, work.out, 0, 0, b)
                    if quick == 3:
                        for c in range(1, at.columns - 1):
                            three(at, r, c, 0)
                    elif quick == 5:
                        for c in range(1, at.columns - 1):
                            five(at, r, c, 0)
                    cell(at, r, 0, 0)
                    for c in range(max(1, at.columns - 1) if quick else 1, at.columns):
                        cell(at, r, c, 0)

    return slide


def _gathering(v: Any) -> Any:
    @jit
    def gather(at, r, c, _other, j):
        """The gradient of x at a position."""
        e, f = r + at.top, c + at.left
        low, start = max(0, e - at.down * (at.rows - 1)), max(0, f - at.across * (at.columns - 1))
        low, start = low + _beyond(e - low, at.down), start + _beyond(f - start, at.across)
        column = _over(f - start, at.across)
        found = v.splat(np.float32(0))
        for k in range(low, min(at.tall, e + 1), at.down):
            grad = at.y + (_over(e - k, at.down) * at.columns + column) * at.step + j * v.size
            factor = at.kernel + (k * at.wide + start) * at.reach + 4 * j
            for _ in range(start, min(at.wide, f + 1), at.across):
                found = v.fma(v.load(grad), v.numbers(factor), found)
                grad -= at.step
                factor += at.across * at.reach
        to = at.to + (r * at.width + c) * at.step + j * v.size
        if at.more:
            found = v.add(found, v.load(to))
        v.store(to, found)

    return gather


def _weighing(v: Any) -> Any:
    @jit
    def weigh(at, r, k, i, j):
        """What a row of y adds to the gradient of one of the kernel's numbers."""
        # Columns of y from whose place that number's column is within x.
        start = max(0, _over(at.left - i + at.across - 1, at.across))
        end = min(at.columns, _over(at.width - 1 + at.left - i, at.across) + 1)
        grad = at.y + (r * at.columns + start) * at.step + j * v.size
        x = at.x + (r * at.down - at.top + k) * at.width * at.step + j * v.size
        x += (start * at.across - at.left + i) * at.step
        to = at.sums + (k * at.wide + i) * at.reach + 4 * j
        found = v.numbers(to)
        for _ in range(start, end):
            found = v.fma(v.load(grad), v.load(x), found)
            grad += at.step
            x += at.across * at.step
        v.keep(to, found)

    return weigh


def _ending(v: Any) -> Any:
    @jit
    def end(at, r, k, _other, j):
        """What the first and the last of a row of y add to a row of the kernel's gradient."""
        for c in range(0, at.columns, max(1, at.columns - 1)):
            g = v.load(at.y + (r * at.columns + c) * at.step + j * v.size)
            row = at.x + (r * at.down - at.top + k) * at.width * at.step + j * v.size
            for i in range(at.wide):
                column = c * at.across - at.left + i
                if 0 <= column < at.width:
                    to = at.sums + (k * at.wide + i) * at.reach + 4 * j
                    v.keep(to, v.fma(g, v.load(row + column * at.step), v.numbers(to)))

    return end


def _spreading(kind: str, gather: Any) -> Any:
    """Two rows of the gradient of x, where `halving` knows the convolution."""
    three, five = (halving(taps, kind).spread for taps in (3, 5))

    @jit
    def spread(at, r):
        for row in range(2 * r, min(2 * r + 2, at.height)):
            k = (row + at.top) & 1
            other = (row + at.top - k) >> 1
            if other == at.rows:
                k, other = k + 2, other - 1
            if at.wide == 3:
                three(at, row, k, other)
            else:
                five(at, row, k, other)
            gather(at, row, 0, 0)
            gather(at, row, 1, 0)
            for c in range(2 * (at.columns - 1), at.width):
                gather(at, row, c, 0)

    return spread


def _returning(kind: str, begin: Any) -> Any:
    three, five = (halving(taps, kind).weigh for taps in (3, 5))
    end = over("end", kind, _ending, wide=32)
    gather = over("gather", kind, _gathering, wide=32)
    weigh = over("weigh_kernel", kind, _weighing, wide=32)
    spread = _spreading(kind, gather)
    _, put_number, _ = array("first", np.float32)

    @jit
    def row_back(at, r, quick, gathers):
        """What a row of y brings to the kernel's gradient, and to that of x, where it is in two."""
        e = r * at.down - at.top
        for k in range(max(0, -e), min(at.tall, at.height - e)):
            if quick == 3:
                three(at, r, k, 0)
            elif quick == 5:
                five(at, r, k, 0)
            if quick:
                end(at, r, k, 0)
            else:
                for i in range(at.wide):
                    weigh(at, r, k, i)
        if quick and gathers:
            spread(at, r)

    @jit
    def slide_back(work, part, first, last):
        sums = work.kernel_sums + (part * work.fold * work.inner * work.C + first) * 4
        for k in range(work.fold * work.inner):
            for i in range(last - first):
                put_number(sums + k * work.C * 4, i, np.float32(0))
        start, stop = span(work, part)
        for image in range(start, stop):
            whole = begin(work, image, first, last, work.x, work.grad, work.out, sums, 0)
            quick, gathers = _halves(whole), work.out != 0
            for r in range(whole.rows):
                for b in range(work.fold):
                    at = begin(work, image, first, last, work.x, work.grad, work.out, sums, b)
                    row_back(at, r, quick, gathers)
            for r in range(whole.height if gathers and not quick else 0):
                for b in range(work.fold):
                    at = begin(work, image, first, last, work.x, work.grad, work.out, sums, b)
                    for c in range(at.width):
                        gather(at, r, c, 0)

    return slide_back


def _settling(kind: str) -> Any:
    add = adding_parts(f"kernel_{kind}")

    @jit
    def settle_kernel(work, _part, first, last):
        """The gradients of the kernels, of some channels, from those of the parts."""
        for k in range(work.fold * work.inner):
            start, step = 4 * (k * work.C + first), 4 * work.fold * work.inner * work.C
            sums, to = work.kernel_sums + start, work.grad_kernel + start
            add(last - first, to, sums, step, work.parts)

    return settle_kernel
