"""What the passes of `branched` do to one row of a chunk, beside those of `cheap_rows`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from spiritlevel.kernels.cheap_rows import near, nine, row, taps
from spiritlevel.kernels.compiled import jit
from spiritlevel.kernels.vectors import over

__all__ = ["branch_rows"]


def branch_rows(kind: str) -> SimpleNamespace:
    """Each by its name, for all channels of a chunk whose elements are of `kind`."""
    made = {"total": _totalling, "lower": _lowering, "spread": _spreading, "finish": _finishing}
    return SimpleNamespace(
        **{name: over(f"branched_{name}", kind, making) for name, making in made.items()}
    )


def _totalling(v: Any) -> Any:
    @jit
    def total(at, r, _rows, _other, j):
        """The sum of a row of g, whose ring has zeros between the images."""
        g, found = row(at, at.rest, r) + 4 * j, v.splat(np.float32(0))
        for _ in range(at.images * (at.width + 2)):
            found = v.add(found, v.numbers(g))
            g += at.pitch
        v.keep(at.total + 4 * j, found)

    return total


def _lowering(v: Any) -> Any:
    (begin, later), load = taps(v), nine(v)

    @jit
    def lower(at, r, _rows, _other, j):
        """q = k2 (c - mean) + k1 into its ring."""
        k, centre = load(at, j), v.numbers(at.high2 + 4 * j)
        k1, k2 = v.numbers(at.k1 + 4 * j), v.numbers(at.k2 + 4 * j)
        p, q, s = near(at, at.ring, r, j)
        to = row(at, at.rest, r) - at.pitch + 4 * j
        on = 0
        for _ in range(at.images):
            now, after = begin(p + on, q + on, s + on, at.pitch, k)
            on += 2 * at.pitch
            for _ in range(at.width):
                y, now, after = later(p, q, s, on, k, now, after)
                v.keep(to + on, v.fma(k2, v.sub(y, centre), k1))
                on += at.pitch

    return lower


def _spreading(v: Any) -> Any:
    (begin, later), load = taps(v), nine(v)

    @jit
    def spread(at, r, branch, _other, j):
        """What a branch's ring sends back to row r of p, to that of the branches before."""
        w = load(at, j)
        k = (w[8], w[7], w[6], w[5], w[4], w[3], w[2], w[1], w[0])
        p, q, s = near(at, at.rest, r, j)
        to = at.summed - at.pitch + 4 * j
        on = 0
        for _ in range(at.images):
            now, after = begin(p + on, q + on, s + on, at.pitch, k)
            on += 2 * at.pitch
            for _ in range(at.width):
                y, now, after = later(p, q, s, on, k, now, after)
                if branch:
                    y = v.add(y, v.numbers(to + on))
                v.keep(to + on, y)
                on += at.pitch

    return spread


def _finishing(v: Any) -> Any:
    @jit
    def finish(at, r, rows, _other, j):
        """The gradient of y, and its sum; `rows` of the table are before those of p itself."""
        own = at.table + rows * at.channels + 4 * j
        centre, k1 = v.numbers(own), v.numbers(own + at.channels)
        k2, floor = v.numbers(own + 2 * at.channels), v.splat(at.floor)
        made = row(at, at.ring, r) + at.pitch + 4 * j
        summed = at.summed + at.pitch + 4 * j
        grad = at.grad + r * at.width * at.stride + j * v.size
        to = at.to + r * at.width * at.step + j * v.size
        ahead = at.width * at.step
        zero = total = v.splat(np.float32(0))
        for _ in range(at.images):
            for _ in range(at.width):
                v.fetch(grad + 2 * ahead)
                v.claim(to + ahead)
                p = v.numbers(made)
                g = v.add(v.load(grad), v.fma(k2, v.sub(p, centre), k1))
                g = v.above(p, floor, v.add(g, v.numbers(summed)), zero)
                v.store(to, g)
                total = v.add(total, g)
                grad += at.stride
                to += at.step
                made += at.pitch
                summed += at.pitch
            grad += 2 * (at.height - 1) * ahead
            to += (at.height - 1) * ahead
            made += 2 * at.pitch
            summed += 2 * at.pitch
        v.keep(at.total + 4 * j, total)

    return finish
