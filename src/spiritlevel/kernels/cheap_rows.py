"""What the passes of `cheap` do to one row of a chunk, for one vector of its channels.

Each function is made for vectors of so many lanes, and is called as `vectors.over` has it. Rows are
those of the ring of p, or of the ring of what comes back (`rest`).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from spiritlevel.kernels.channels import merge_rows
from spiritlevel.kernels.compiled import array, jit
from spiritlevel.kernels.vectors import over

__all__ = ["RING", "blank", "fill", "near", "nine", "row", "rows", "stepping", "tallying", "taps"]

RING = 4
"""Rows of a ring."""


@jit
def row(at, ring, r):
    """Where row r of a ring begins, of all images, with the zeros in front of the first one's."""
    return ring + ((r + 1) % RING) * at.line


@jit
def near(at, ring, r, j):
    """Where channel j begins in the rows before, at and after r."""
    on = 4 * j
    return row(at, ring, r - 1) + on, row(at, ring, r) + on, row(at, ring, r + 1) + on


_number, _put_number, _ = array("first", np.float32)


@jit
def fill(to, count, value):
    for i in range(count):
        _put_number(to, i, np.float32(value))


@jit
def blank(at, ring):
    """Zeros in the row before row 0, and in front of and behind each image's row."""
    cells = (at.width + 2) * at.count
    for r in range(RING * at.images):
        fill(ring + 4 * r * cells, at.count, 0)
        fill(ring + 4 * ((r + 1) * cells - at.count), at.count, 0)
    fill(row(at, ring, -1), at.line // 4, 0)


def stepping(make_row: Any) -> Any:
    @jit
    def step(at, r):
        """Row r of p into its ring; there are zeros after the last."""
        if r < at.height:
            make_row(at, r, 1, 0)
        else:
            fill(row(at, at.ring, r), at.line // 4, 0)

    return step


def tallying(tally_row: Any) -> Any:
    @jit
    def tally(at, r, means, squares):
        """Mean and squares of rows 0 to r of c, from those of the rows before."""
        values = at.images * at.width
        if r == 0:  # only for centres: squares are taken of distances from a mean
            fill(at.centre, at.count, 0)
            tally_row(at, 0, 1, 0)
            for i in range(at.count):
                _put_number(at.centre, i, _number(at.total, i) / np.float32(values))
        tally_row(at, r, 1, 0)
        merge_rows(at, values, r * values, means, squares)

    return tally


def rows(kind: str, beside: str = "") -> SimpleNamespace:
    """Each by its name, for all channels of a chunk whose elements are of `kind`.

    `beside` tells the compiled ones from those of other chunks.
    """
    made = {
        "make": _making,
        "tally": _tallying,
        "join": _joining,
        "reduce": _reducing,
        "descend": _descending,
        "weigh": _weighing,
        "back": _returning,
    }
    return SimpleNamespace(
        **{name: over(beside + name, kind, making) for name, making in made.items()}
    )


def _norm(v: Any) -> Any:
    @jit
    def norm(at, high, a, b, j):
        """Its centre, scale and shift, and what the activation lets nothing below."""
        on = 4 * j
        return v.numbers(high + on), v.numbers(a + on), v.numbers(b + on), v.splat(at.floor)

    return norm


def _making(v: Any) -> Any:
    norm = _norm(v)

    @jit
    def make(at, r, _rows, _other, j):
        """p into its ring."""
        centre, scale, shift, floor = norm(at, at.high, at.a, at.b, j)
        x = at.x + r * at.width * at.step + j * v.size
        to = row(at, at.ring, r) + at.pitch + 4 * j
        ahead = at.width * at.step
        for _ in range(at.images):
            for _ in range(at.width):
                v.fetch(x + ahead)
                z = v.fma(v.sub(v.load(x), centre), scale, shift)
                v.keep(to, v.above(z, floor, z, floor))
                x += at.step
                to += at.pitch
            x += (at.height - 1) * ahead
            to += 2 * at.pitch

    return make


def taps(v: Any) -> Any:
    """Sums of nine neighbours times nine numbers, along a row: `begin`, then `later` and `later`.

    A column is read once, and added to the three sums that it is in. Of these, those of its right
    neighbour (`after`) and of itself are not yet whole (`now`): only the left one's is.
    """

    @jit
    def begin(p, q, s, pitch, k):
        a, b, c = v.numbers(p + pitch), v.numbers(q + pitch), v.numbers(s + pitch)
        now = v.fma(c, k[7], v.fma(b, k[4], v.mul(a, k[1])))
        return now, v.fma(c, k[6], v.fma(b, k[3], v.mul(a, k[0])))

    @jit
    def later(p, q, s, on, k, now, after):
        a, b, c = v.numbers(p + on), v.numbers(q + on), v.numbers(s + on)
        whole = v.fma(c, k[8], v.fma(b, k[5], v.fma(a, k[2], now)))
        now = v.fma(c, k[7], v.fma(b, k[4], v.fma(a, k[1], after)))
        return whole, now, v.fma(c, k[6], v.fma(b, k[3], v.mul(a, k[0])))

    return begin, later


def nine(v: Any) -> Any:
    @jit
    def load(at, j):
        """The kernel's numbers."""
        k, reach = at.kernel + 4 * j, at.reach
        return (
            *(v.numbers(k), v.numbers(k + reach), v.numbers(k + 2 * reach)),
            *(v.numbers(k + 3 * reach), v.numbers(k + 4 * reach), v.numbers(k + 5 * reach)),
            *(v.numbers(k + 6 * reach), v.numbers(k + 7 * reach), v.numbers(k + 8 * reach)),
        )

    return load


def _tallying(v: Any) -> Any:
    (begin, later), load = taps(v), nine(v)

    @jit
    def tally(at, r, _rows, _other, j):
        """Sum, and sum of squares, of the distances of a row of c from its centres."""
        k, centre = load(at, j), v.numbers(at.centre + 4 * j)
        p, q, s = near(at, at.ring, r, j)
        total = square = v.splat(np.float32(0))
        on = 0
        for _ in range(at.images):
            now, after = begin(p + on, q + on, s + on, at.pitch, k)
            on += 2 * at.pitch
            for _ in range(at.width):
                y, now, after = later(p, q, s, on, k, now, after)
                d = v.sub(y, centre)
                total = v.add(total, d)
                square = v.fma(d, d, square)
                on += at.pitch
        v.keep(at.total + 4 * j, total)
        v.keep(at.square + 4 * j, square)

    return tally


def _joining(v: Any) -> Any:
    (begin, later), load, norm = taps(v), nine(v), _norm(v)

    @jit
    def join(at, r, _rows, _other, j):
        k, (centre, scale, shift, floor) = load(at, j), norm(at, at.high2, at.a2, at.b2, j)
        p, q, s = near(at, at.ring, r, j)
        off = r * at.width * at.stride + j * v.size
        half, ahead = at.stride // 2, at.width * at.stride
        on = 0
        for _ in range(at.images):
            now, after = begin(p + on, q + on, s + on, at.pitch, k)
            on += 2 * at.pitch
            for _ in range(at.width):
                y, now, after = later(p, q, s, on, k, now, after)
                z = v.fma(v.sub(y, centre), scale, shift)
                z = v.above(z, floor, z, floor)
                first = v.numbers(q + on - at.pitch)
                if at.residual != 0:
                    v.fetch(at.residual + off + ahead)
                    v.fetch(at.residual + off + ahead + half)
                    first = v.add(first, v.load(at.residual + off))
                    z = v.add(z, v.load(at.residual + off + half))
                v.claim(at.out + off + ahead)
                v.claim(at.out + off + ahead + half)
                v.store(at.out + off, first)
                v.store(at.out + off + half, z)
                off += at.stride
                on += at.pitch
            off += (at.height - 1) * ahead

    return join


def _reducing(v: Any) -> Any:
    (begin, later), load, norm = taps(v), nine(v), _norm(v)

    @jit
    def reduce(at, r, _rows, _other, j):
        k, (centre, scale, shift, floor) = load(at, j), norm(at, at.high2, at.a2, at.b2, j)
        p, q, s = near(at, at.ring, r, j)
        grad = at.grad + r * at.width * at.stride + at.stride // 2 + j * v.size
        ahead = at.width * at.stride
        zero = total = square = v.splat(np.float32(0))
        on = 0
        for _ in range(at.images):
            now, after = begin(p + on, q + on, s + on, at.pitch, k)
            on += 2 * at.pitch
            for _ in range(at.width):
                y, now, after = later(p, q, s, on, k, now, after)
                d = v.sub(y, centre)
                v.fetch(grad + ahead)
                g = v.above(v.fma(d, scale, shift), floor, v.load(grad), zero)
                total = v.add(total, g)
                square = v.fma(g, d, square)
                grad += at.stride
                on += at.pitch
            grad += (at.height - 1) * ahead
        v.keep(at.total + 4 * j, total)
        v.keep(at.square + 4 * j, square)

    return reduce


def _descending(v: Any) -> Any:
    (begin, later), load, norm = taps(v), nine(v), _norm(v)

    @jit
    def descend(at, r, _rows, _other, j):
        """The gradient of c into its ring."""
        k, (centre, scale, shift, floor) = load(at, j), norm(at, at.high2, at.a2, at.b2, j)
        k1, k2 = v.numbers(at.k1 + 4 * j), v.numbers(at.k2 + 4 * j)
        zero = v.splat(np.float32(0))
        p, q, s = near(at, at.ring, r, j)
        grad = at.grad + r * at.width * at.stride + at.stride // 2 + j * v.size
        ahead = at.width * at.stride
        to = row(at, at.rest, r) - at.pitch + 4 * j
        on = 0
        for _ in range(at.images):
            now, after = begin(p + on, q + on, s + on, at.pitch, k)
            on += 2 * at.pitch
            for _ in range(at.width):
                y, now, after = later(p, q, s, on, k, now, after)
                d = v.sub(y, centre)
                v.fetch(grad + ahead)
                g = v.above(v.fma(d, scale, shift), floor, v.load(grad), zero)
                v.keep(to + on, v.fma(scale, g, v.fma(k2, d, k1)))
                grad += at.stride
                on += at.pitch
            grad += (at.height - 1) * ahead

    return descend


def _weighing(v: Any) -> Any:
    @jit
    def weigh(at, r, _rows, _other, j):
        """What a row adds to the gradient of the kernel."""
        p, q, s = near(at, at.ring, r, j)
        found = row(at, at.rest, r) + at.pitch + 4 * j
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = v.splat(np.float32(0))
        on, zero = 0, v.splat(np.float32(0))
        for _ in range(at.images):
            left, here = zero, v.numbers(found + on)
            for _ in range(at.width):  # a column of p, and the gradients left of it, there, right
                on += at.pitch
                right = v.numbers(found + on)
                x = v.numbers(p + on)
                a0, a1, a2 = v.fma(right, x, a0), v.fma(here, x, a1), v.fma(left, x, a2)
                x = v.numbers(q + on)
                a3, a4, a5 = v.fma(right, x, a3), v.fma(here, x, a4), v.fma(left, x, a5)
                x = v.numbers(s + on)
                a6, a7, a8 = v.fma(right, x, a6), v.fma(here, x, a7), v.fma(left, x, a8)
                left, here = here, right
            on += 2 * at.pitch
        to = at.sums + 4 * j
        for a in (a0, a1, a2, a3, a4, a5, a6, a7, a8):
            v.keep(to, v.add(a, v.numbers(to)))
            to += at.reach

    return weigh


def _returning(v: Any) -> Any:
    (begin, later), load = taps(v), nine(v)

    @jit
    def back(at, r, _rows, _other, j):
        """The gradient that reaches the first norm, and its sums."""
        w = load(at, j)
        k = (w[8], w[7], w[6], w[5], w[4], w[3], w[2], w[1], w[0])
        centre, floor = v.numbers(at.high + 4 * j), v.splat(at.floor)
        p, q, s = near(at, at.rest, r, j)
        made = row(at, at.ring, r) - at.pitch + 4 * j
        grad = at.grad + r * at.width * at.stride + j * v.size
        x = at.x + r * at.width * at.step + j * v.size
        to = at.to + r * at.width * at.step + j * v.size
        ahead = at.width * at.step
        zero = total = square = v.splat(np.float32(0))
        on = 0
        for _ in range(at.images):
            now, after = begin(p + on, q + on, s + on, at.pitch, k)
            on += 2 * at.pitch
            for _ in range(at.width):
                y, now, after = later(p, q, s, on, k, now, after)
                v.fetch(grad + 2 * ahead)
                v.claim(to + ahead)
                g = v.add(y, v.load(grad))
                g = v.above(v.numbers(made + on), floor, g, zero)
                v.store(to, g)
                total = v.add(total, g)
                square = v.fma(g, v.sub(v.load(x), centre), square)
                grad += at.stride
                x += at.step
                to += at.step
                on += at.pitch
            grad += 2 * (at.height - 1) * ahead
            x += (at.height - 1) * ahead
            to += (at.height - 1) * ahead
        v.keep(at.total + 4 * j, total)
        v.keep(at.square + 4 * j, square)

    return back
