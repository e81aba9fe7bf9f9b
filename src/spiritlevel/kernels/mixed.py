"""Norms of several tensors, and the sum of these norms: rows of positions, channels-last.

    mix        y = sum over k of a_k (x_k - mean_k), plus a bias
    unmix      sum of grad (x_k - mean_k), for each k and channel, and then sum of grad
    unmix_all  a_k grad + k2_k (x_k - mean_k) + k1_k, for each k

The tensors lie side by side as channels of one; or, where `fold` is their number, one after the
other. A chunk has some of the rows, and takes a few of them at a time.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from spiritlevel.kernels.compiled import array, jit, naming, size_of, span
from spiritlevel.kernels.vectors import over

__all__ = ["passes"]

# Addresses, but for count (channels of y), step and wide (bytes from one row to the next, of y and
# of x) and from one of the tensors to the next, in x and in numbers of channels (part, each).
_Rows = namedtuple("_Rows", "count step wide part each centre scale k1 k2 shift to total")


def passes(kind: str) -> dict[str, Any]:
    """Each pass by its name, for elements of `kind`, "f32" or "bf16"."""
    size, fields = size_of(kind), _Rows

    with naming("mixed", kind):

        @jit
        def begin(work, y, total):
            channels, each, line = work.C, work.C * 4, work.C * size
            wide, part, one = work.inner * line, line, work.inner * each
            if work.fold > 1:
                wide, part = line, work.N * line
            return fields(
                *(channels, line, wide, part, each),
                *(work.sums, work.sums + one, work.sums + 2 * one, work.sums + 3 * one),
                *(work.bias, y, total),
            )

        return {
            "mix": _mixing(kind, size, begin),
            "unmix": _unmixing(kind, size, begin),
            "unmix_all": _unmixing_all(kind, size, begin),
        }


def _mixing(kind: str, size: Any, begin: Any) -> Any:
    def making(v: Any) -> Any:
        @jit
        def mix_rows(at, x, rows, count, j):
            on, to, shift = x + j * size, at.to + j * size, v.numbers(at.shift + 4 * j)
            for _ in range(rows):
                y, one, numbers = shift, on, 4 * j
                v.claim(to + 4 * at.step)
                for _ in range(count):
                    v.fetch(one + 4 * at.wide)
                    d = v.sub(v.load(one), v.numbers(at.centre + numbers))
                    y = v.fma(d, v.numbers(at.scale + numbers), y)
                    one += at.part
                    numbers += at.each
                v.store(to, y)
                on += at.wide
                to += at.step

        return mix_rows

    mix_rows = over("mix_rows", kind, making)

    @jit
    def mix(work, part, _first, _last):
        start, end = span(work, part)
        for n in range(start, end, work.height):
            rows = min(work.height, end - n)
            at = begin(work, work.out + n * work.C * size, 0)
            mix_rows(at, work.x + n * at.wide, rows, work.inner)

    return mix


def _unmixing(kind: str, size: Any, begin: Any) -> Any:
    number, _, _ = array("first", np.float32)
    sum_at, put_sum, _ = array("sums", np.float64)

    def making(v: Any) -> Any:
        @jit
        def unmix_rows(at, x, rows, k, j):
            on, grad = x + k * at.part + j * size, at.to + j * size
            centre = v.numbers(at.centre + k * at.each + 4 * j)
            total = v.splat(np.float32(0))
            for _ in range(rows):
                total = v.fma(v.load(grad), v.sub(v.load(on), centre), total)
                on += at.wide
                grad += at.step
            v.keep(at.total + 4 * j, total)

        return unmix_rows

    def totalling(v: Any) -> Any:
        @jit
        def total_rows(at, _x, rows, _other, j):
            grad, total = at.to + j * size, v.splat(np.float32(0))
            for _ in range(rows):
                total = v.add(total, v.load(grad))
                grad += at.step
            v.keep(at.total + 4 * j, total)

        return total_rows

    unmix_rows, total_rows = over("unmix_rows", kind, making), over("total_rows", kind, totalling)

    @jit
    def unmix(work, part, _first, _last):
        own = work.rings + part * work.ring
        start, end = span(work, part)
        for n in range(start, end, work.height):
            rows = min(work.height, end - n)
            at = begin(work, work.grad + n * work.C * size, own)
            for k in range(work.inner + 1):
                if k < work.inner:
                    unmix_rows(at, work.x + n * at.wide, rows, k)
                else:
                    total_rows(at, 0, rows, 0)
                to = work.partials + (part * (work.inner + 1) + k) * work.C * 8
                for i in range(work.C):
                    before = 0.0 if n == start else sum_at(to, i)
                    put_sum(to, i, before + float(number(own, i)))

    return unmix


def _unmixing_all(kind: str, size: Any, begin: Any) -> Any:
    def making(v: Any) -> Any:
        @jit
        def part_rows(at, x, rows, k, j):
            on, off = x + k * at.part + j * size, k * at.each + 4 * j
            to, grad = at.total + k * at.part + j * size, at.to + j * size
            centre, scale = v.numbers(at.centre + off), v.numbers(at.scale + off)
            k1, k2 = v.numbers(at.k1 + off), v.numbers(at.k2 + off)
            for _ in range(rows):
                d = v.sub(v.load(on), centre)
                v.store(to, v.fma(scale, v.load(grad), v.fma(k2, d, k1)))
                on += at.wide
                to += at.wide
                grad += at.step

        return part_rows

    part_rows = over("part_rows", kind, making)

    @jit
    def unmix_all(work, part, _first, _last):
        start, end = span(work, part)
        for n in range(start, end, work.height):
            rows = min(work.height, end - n)
            at = begin(work, work.grad + n * work.C * size, 0)
            of = begin(work, at.to, work.out + n * at.wide)
            for k in range(work.inner):
                part_rows(of, work.x + n * at.wide, rows, k)

    return unmix_all
