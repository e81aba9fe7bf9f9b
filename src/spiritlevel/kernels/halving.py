"""Depthwise 3x3 and 5x5 convolutions that halve a map, away from its left and right ends.

What is in the middle of column c of y is column 2 c of x. Columns that are not the first or
last have all their neighbours, so that nothing is asked for each number; rows may lack some. Chunks
are those of `sliding`.
"""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from spiritlevel.kernels.compiled import jit, naming
from spiritlevel.kernels.vectors import over

__all__ = ["halving"]


@cache
def halving(taps: int, kind: str) -> SimpleNamespace:
    """For a kernel of taps x taps, 3 or 5, each a function of (at, row, ..., ...) for all channels.

    slide(at, r, c, 0) makes a position of y; weigh(at, r, k, 0) adds what a row of y's gradient
    brings to a row of the kernel's; spread(at, row, k, r) makes a row of the gradient of x, from
    those of y that it is in: r by the kernel's row k, r - 1 by k + 2, and so on.
    """
    made = {"slide": (_sliding, 16), "weigh": (_weighing, 16), "spread": (_spreading, 32)}
    with naming("halving", str(taps)):
        return SimpleNamespace(
            **{
                name: over(f"{name}_{taps}", kind, partial(make, taps), wide=wide)
                for name, (make, wide) in made.items()
            }
        )


def _sliding(taps: int, v: Any) -> Any:
    @jit
    def slide(at, r, c, _other, j):
        e = 2 * r - at.top
        low, high = max(0, -e), min(taps, at.height - e)
        line = at.width * at.step
        on = at.x + ((e + low) * at.width + 2 * c - at.left) * at.step + j * v.size
        y = at.y + (r * at.columns + c) * at.step + j * v.size
        factor = at.kernel + low * taps * at.reach + 4 * j
        found = v.splat(np.float32(0))
        for _ in range(low, high):
            here = on
            for _ in range(taps):
                found = v.fma(v.load(here), v.numbers(factor), found)
                here += at.step
                factor += at.reach
            on += line
        v.store(y, found)

    return slide


def _weighing(taps: int, v: Any) -> Any:
    @jit
    def weigh(at, r, k, _other, j):
        grad = at.y + (r * at.columns + 1) * at.step + j * v.size
        x = at.x + ((2 * r - at.top + k) * at.width + 2 - at.left) * at.step + j * v.size
        ahead = 2 * at.width * at.step
        a0 = a1 = a2 = a3 = a4 = v.splat(np.float32(0))
        for _ in range(1, at.columns - 1):
            g, on = v.load(grad), x + at.step
            v.fetch(x + ahead)
            v.fetch(on + ahead)
            a0 = v.fma(g, v.load(x), a0)
            a1 = v.fma(g, v.load(on), a1)
            x = on + at.step
            a2 = v.fma(g, v.load(x), a2)
            if taps == 5:
                a3 = v.fma(g, v.load(x + at.step), a3)
                a4 = v.fma(g, v.load(x + 2 * at.step), a4)
            grad += at.step
        to = at.sums + k * taps * at.reach + 4 * j
        for a in (a0, a1, a2):
            v.keep(to, v.add(a, v.numbers(to)))
            to += at.reach
        if taps == 5:
            for a in (a3, a4):
                v.keep(to, v.add(a, v.numbers(to)))
                to += at.reach

    return weigh


def _spreading(taps: int, v: Any) -> Any:
    @jit
    def spread(at, row, k, r, j):
        line = at.columns * at.step
        rows = min(r + 1, (taps - k + 1) // 2)
        here = at.y + (r * at.columns + 1) * at.step + j * v.size
        to = at.to + (row * at.width + 2) * at.step + j * v.size
        first, down = at.kernel + k * taps * at.reach + 4 * j, 2 * taps * at.reach
        ahead = 2 * at.width * at.step
        for _ in range(1, at.columns - 1):
            even = odd = v.splat(np.float32(0))
            on, w = here, first
            for _ in range(rows):
                g, after = v.load(on), v.load(on + at.step)
                if taps == 3:
                    even = v.fma(g, v.numbers(w + at.reach), even)
                    odd = v.fma(g, v.numbers(w + 2 * at.reach), odd)
                    odd = v.fma(after, v.numbers(w), odd)
                else:
                    even = v.fma(g, v.numbers(w + 2 * at.reach), even)
                    odd = v.fma(g, v.numbers(w + 3 * at.reach), odd)
                    even = v.fma(after, v.numbers(w), even)
                    odd = v.fma(after, v.numbers(w + at.reach), odd)
                    even = v.fma(v.load(on - at.step), v.numbers(w + 4 * at.reach), even)
                on -= line
                w += down
            if at.more:
                even = v.add(even, v.load(to))
                odd = v.add(odd, v.load(to + at.step))
            v.claim(to + ahead)
            v.store(to, even)
            to += at.step
            v.claim(to + ahead)
            v.store(to, odd)
            to += at.step
            here += at.step

    return spread
