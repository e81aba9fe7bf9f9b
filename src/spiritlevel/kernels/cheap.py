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

A chunk is some channels of an image, or of several small ones whose rows lie side by side. It is
the same on any number of threads.
"""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np

from spiritlevel.kernels.channels import K1, K2, low_of
from spiritlevel.kernels.cheap_rows import RING, blank, fill, row, rows, stepping, tallying
from spiritlevel.kernels.compiled import array, jit, naming, size_of

__all__ = ["passes", "scratch"]

_RINGS = 2 * RING
"""Rows of a chunk's two rings, of p and of the gradient of c."""
_PER_CHANNEL = 12
"""Numbers that a chunk has for each of its channels, beside the rings: those of `_Chunk`."""


def scratch(width: int, channels: int, images: int) -> int:
    """Bytes of float32 that a chunk of so many channels and images needs."""
    return 4 * channels * (_RINGS * images * (width + 2) + _PER_CHANNEL)


# Addresses but for width, height, count, and bytes from one position to the next: of x, of out
# and its gradient (stride), of a ring (pitch), and from one row to the next, of a ring (line), of
# the kernel (reach).
_Chunk = namedtuple(
    "_Chunk",
    "images width height count step stride pitch line reach x out residual grad to ring rest "
    "kernel sums high a b high2 a2 b2 k1 k2 centre total square floor",
)


def passes(kind: str) -> dict[str, Any]:
    """Each pass by its name, for elements of `kind`, "f32" or "bf16".

    The activation is a relu where the work's `slope` is 0, and none where it is minus infinity:
    what is not above it becomes it.
    """
    with naming("cheap", kind):
        of = _parts(kind)
        do = rows(kind)
        of.open, of.add = _opening(of), _adding(of)
        of.step, of.tally = stepping(do.make), tallying(do.tally)
        return {
            "tally": _tallying(of),
            "join": _joining(of, do),
            "reduce": _reducing(of, do),
            "unjoin": _unjoining(of, do),
            "settle_before": _settling_before(of),
        }


def _parts(kind: str) -> SimpleNamespace:
    """What all passes begin with."""
    size, fields = size_of(kind), _Chunk
    given, _, _ = array("given", np.float32)
    of_channel, _, _ = array("per_channel", np.float64)
    number, put_number, _ = array("first", np.float32)

    @jit
    def normal(mean_at, var_at, weight_at, bias_at, eps, first, count, high, a, b):
        """The coefficients of a norm, as `channels` makes them."""
        for i in range(count):
            mean, c = of_channel(mean_at, first + i), first + i
            weight = float(given(weight_at, c)) if weight_at != 0 else 1.0
            bias = float(given(bias_at, c)) if bias_at != 0 else 0.0
            scale = weight / np.sqrt(of_channel(var_at, c) + eps)
            low = low_of(mean, np.float32(mean))
            put_number(high, i, np.float32(mean))
            put_number(a, i, np.float32(scale))
            put_number(b, i, np.float32(bias - low * scale))

    @jit
    def begin(work, part, first, last):
        channels, count = work.C, last - first
        groups = (channels + work.group_0 - 1) // work.group_0
        chunk = part * groups + first // work.group_0
        images = min(work.part, work.N - part * work.part)
        line = images * (work.width + 2) * count * 4
        ring = work.rings + chunk * work.ring
        rest = ring + RING * line
        each = rest + RING * line
        own = count * 4
        start = part * work.part * work.height * work.width
        residual = work.residual
        if residual != 0:
            residual += (start * 2 * channels + first) * size
        at = fields(
            *(images, work.width, work.height, count, channels * size, 2 * channels * size, own),
            *(line, channels * 4),
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

    return SimpleNamespace(begin=begin, second=second, number=number, put_number=put_number)


def _opening(of: SimpleNamespace) -> Any:
    begin, second = of.begin, of.second

    @jit
    def open_chunk(work, part, first, last, both):
        """The chunk, with its ring of p as it is before row 0; `both` norms have coefficients."""
        at = begin(work, part, first, last)
        if both:
            second(work, first, at)
        blank(at, at.ring)
        return at

    return open_chunk


def _tallying(of: SimpleNamespace) -> Any:
    open_chunk, step, tally_next = of.open, of.step, of.tally

    @jit
    def tally(work, part, first, last):
        at = open_chunk(work, part, first, last, False)
        means = work.partials + (2 * part * work.C + first) * 8
        for r in range(at.height + 1):
            step(at, r)
            if r:
                tally_next(at, r - 1, means, means + work.C * 8)

    return tally


def _joining(of: SimpleNamespace, do: SimpleNamespace) -> Any:
    open_chunk, step, join_row = of.open, of.step, do.join

    @jit
    def join(work, part, first, last):
        at = open_chunk(work, part, first, last, True)
        for r in range(at.height + 1):
            step(at, r)
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


def _reducing(of: SimpleNamespace, do: SimpleNamespace) -> Any:
    open_chunk, step, add, reduce_row = of.open, of.step, of.add, do.reduce

    @jit
    def reduce(work, part, first, last):
        at = open_chunk(work, part, first, last, True)
        totals = work.partials + (2 * part * work.C + first) * 8
        for r in range(at.height + 1):
            step(at, r)
            if r:
                reduce_row(at, r - 1, 1, 0)
                add(at, r == 1, totals, totals + work.C * 8)

    return reduce


def _unjoining(of: SimpleNamespace, do: SimpleNamespace) -> Any:
    open_chunk, step, add = of.open, of.step, of.add
    descend, weigh, back = do.descend, do.weigh, do.back

    @jit
    def unjoin(work, part, first, last):
        at = open_chunk(work, part, first, last, True)
        totals = work.partials_before + (2 * part * work.C + first) * 8
        blank(at, at.rest)
        for k in range(9):
            fill(at.sums + k * at.reach, at.count, 0)
        for r in range(at.height + 2):
            if r <= at.height:
                step(at, r)
            else:
                fill(row(at, at.rest, at.height), at.line // 4, 0)
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
            low = low_of(mean, np.float32(mean))
            deviation = np.sqrt(of_channel(work.var_before, c) + work.eps_before)
            put_given(work.grad_weight_before, c, np.float32((product - low * total) / deviation))
            put_given(work.grad_bias_before, c, np.float32(total))
            for k in range(9):
                found = 0.0
                for part in range(work.parts):
                    found += float(number(work.kernel_sums, (part * 9 + k) * work.C + c))
                put_number(work.grad_kernel, c * 9 + k, np.float32(found))

    return settle_before
