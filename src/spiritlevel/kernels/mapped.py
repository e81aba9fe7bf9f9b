"""Linear maps of the channels of each position, and the second moments of these channels.

With d = x - centre, rows of positions, channels-last:

    gram          sum of d, and d' d (its lower half)
    map           [d, 1] kernel
    map_weights   grad' d
    map_back      [d, grad, 1] kernel

A chunk has some of the rows, and takes a few of them at a time, as float32 side by side.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from spiritlevel.kernels.compiled import array, jit, naming, size_of, span
from spiritlevel.kernels.products import products
from spiritlevel.kernels.vectors import over

__all__ = ["passes", "scratch"]

# Addresses, but for count (channels), and bytes from one row to the next, where it is (step) and
# where it is laid (pitch).
_Rows = namedtuple("_Rows", "count step pitch centre total to")


def scratch(rows: int, channels: int, inner: int) -> int:
    """Bytes that a chunk needs which takes so many rows at a time, of grad and of x."""
    return 4 * (rows * (channels + inner + 1) + inner)


def passes(kind: str) -> dict[str, Any]:
    """Each pass by its name, for elements of `kind`, "f32" or "bf16"."""
    with naming("mapped", kind):
        lay = _laying(kind)
        found = {"gram": _gram(kind, lay), "map_weights": _weights(kind, lay)}
        found |= {name: _mapping(kind, name, lay) for name in ("map", "map_back")}
    return found


def _laying(kind: str) -> Any:
    """A function that lays a chunk's next rows into its scratch: [d, grad, 1], or without grad."""
    size, fields = size_of(kind), _Rows
    _, put_number, _ = array("first", np.float32)

    def centring(v: Any) -> Any:
        @jit
        def centre_rows(at, x, rows, with_sum, j):
            on, to, centre = x + j * size, at.to + 4 * j, v.numbers(at.centre + 4 * j)
            total, ahead = v.splat(np.float32(0)), rows * at.step
            for _ in range(rows):
                v.fetch(on + ahead)
                d = v.sub(v.load(on), centre)
                v.keep(to, d)
                total = v.add(total, d)
                on += at.step
                to += at.pitch
            if with_sum:
                v.keep(at.total + 4 * j, total)

        return centre_rows

    def widening(v: Any) -> Any:
        @jit
        def grad_rows(at, grad, rows, _other, j):
            on, to, ahead = grad + j * size, at.to + 4 * j, rows * at.step
            for _ in range(rows):
                v.fetch(on + ahead)
                v.keep(to, v.load(on))
                on += at.step
                to += at.pitch

        return grad_rows

    centre_rows = over("centre_rows", kind, centring)
    grad_rows = over("grad_rows", kind, widening)

    @jit
    def lay(work, part, n, rows, with_grad):
        """Where they are, and bytes from one to the next; sums of d are after all of them."""
        channels, inner = work.C if with_grad else 0, work.inner
        own, pitch = work.rings + part * work.ring, 4 * (channels + inner + 1)
        total = own + work.height * pitch
        at = fields(inner, inner * size, pitch, work.bias_before, total, own)
        centre_rows(at, work.x + n * inner * size, rows, channels == 0)
        if channels:
            of_grad = fields(channels, channels * size, pitch, 0, 0, own + 4 * inner)
            grad_rows(of_grad, work.grad + n * channels * size, rows, 0)
        for r in range(rows):
            put_number(own + (r + 1) * pitch - 4, 0, np.float32(1))
        return own, pitch

    return lay


def _gram(kind: str, lay: Any) -> Any:
    product = products("f32 f32 f32")
    number, _, _ = array("first", np.float32)
    sum_at, put_sum, _ = array("sums", np.float64)

    @jit
    def gram(work, part, _first, _last):
        inner, (begin, end) = work.inner, span(work, part)
        sums, to = work.partials + part * inner * 8, work.kernel_sums + 4 * part * inner * inner
        for n in range(begin, end, work.height):
            rows = min(work.height, end - n)
            d, pitch = lay(work, part, n, rows, 0)
            for i in range(inner):
                before = 0.0 if n == begin else sum_at(sums, i)
                put_sum(sums, i, before + float(number(d + work.height * pitch, i)))
            for j in range(0, inner, 16):
                product(
                    *(d + 4 * j, 4, pitch, d + 4 * j, pitch, to + 4 * j * (inner + 1), 4 * inner),
                    *(inner - j, min(16, inner - j), rows, n - begin, 0),
                )

    return gram


def _weights(kind: str, lay: Any) -> Any:
    product = products("f32 f32 f32")

    @jit
    def map_weights(work, part, _first, _last):
        inner, channels, (begin, end) = work.inner, work.C, span(work, part)
        to = work.kernel_sums + 4 * part * channels * inner
        for n in range(begin, end, work.height):
            rows = min(work.height, end - n)
            d, pitch = lay(work, part, n, rows, 1)
            product(
                *(d + 4 * inner, 4, pitch, d, pitch, to, 4 * inner),
                *(channels, inner, rows, n - begin, 0),
            )

    return map_weights


def _mapping(kind: str, name: str, lay: Any) -> Any:
    size, product = size_of(kind), products(f"f32 f32 {kind}")
    back = int(name == "map_back")

    with naming("mapped", kind, name):

        @jit
        def mapping(work, part, _first, _last):
            inner, channels, (begin, end) = work.inner, work.C, span(work, part)
            columns, count = channels, inner + 1
            if back:
                columns, count = inner, channels + inner + 1
            for n in range(begin, end, work.height):
                rows = min(work.height, end - n)
                d, pitch = lay(work, part, n, rows, back)
                line = columns * size
                product(
                    *(d, pitch, 4, work.kernel, 4 * columns, work.out + n * line, line),
                    *(rows, columns, count, 0, 0),
                )

        return mapping
