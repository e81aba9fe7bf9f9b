"""The second half of a Ghost module whose convolution is a sum of branches, as `cheap` has it.

With p = act(y), branches c_b = p * kernel_b (3x3), each with a batch norm, and what leaves p in its
place (`kernel_b` with a centre alone), out = [p, act(sum of all norms)]. Once the statistics are
known that sum is one convolution, p * merged + bias, and `cheap.join` writes it. Of y, nothing of
its size but its gradient:

    tally_branches    mean and squares of p, and of each c_b
    reduce_branches   g = act'(...) of out's second gradient;  sum g, and g at each tap of a kernel
    unjoin_branches   q_b = k2 (c_b - mean) + k1, what g sets off through the statistics of c_b;
                      the gradient of y, its sum, and q_b at each tap of its kernel
"""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np

from spiritlevel.kernels.branched_rows import branch_rows
from spiritlevel.kernels.cheap_rows import RING, blank, fill, row, rows, stepping, tallying
from spiritlevel.kernels.compiled import array, jit, naming, size_of

__all__ = ["passes", "scratch"]

_Sum = namedtuple(
    "_Sum",
    "images width height count step stride pitch line reach x out residual grad to ring rest "
    "kernel sums high a b high2 a2 b2 k1 k2 centre total square floor "
    "summed channels table",
)
"""A chunk as `cheap` has it; a row that is summed up, bytes of a row of the table, and the table.

The table has three rows for each branch, mean, k1 and k2, and then for what leaves p in its place.
"""


def scratch(width: int, channels: int, images: int, branches: int) -> int:
    """Bytes of float32 that a chunk needs: rings of p, g and each q, a row, numbers of channels."""
    lines = RING * (2 + branches) + 1
    return 4 * channels * (lines * images * (width + 2) + 8 + branches + 1)


def passes(kind: str) -> dict[str, Any]:
    """Each pass by its name, for elements of `kind`, "f32" or "bf16"."""
    with naming("branched", kind):
        of = _parts(kind)
        do = SimpleNamespace(**vars(rows(kind, "branched_")), **vars(branch_rows(kind)))
        of.step, of.tally, of.add = stepping(do.make), tallying(do.tally), _adding(of)
        return {
            "tally_branches": _tallying(of),
            "reduce_branches": _reducing(of, do),
            "unjoin_branches": _unjoining(of, do),
        }


def _parts(kind: str) -> SimpleNamespace:
    size, fields = size_of(kind), _Sum
    given, _, _ = array("given", np.float32)
    number, put_number, _ = array("first", np.float32)

    @jit
    def shifts(at, first, before, after):
        """p is act(y + a bias or none), and what is written act(p * merged + bias)."""
        fill(at.high, at.count, 0)
        fill(at.high2, at.count, 0)
        fill(at.a, at.count, 1)
        fill(at.a2, at.count, 1)
        for i in range(at.count):
            put_number(at.b, i, given(before, first + i) if before != 0 else np.float32(0))
            put_number(at.b2, i, given(after, first + i) if after != 0 else np.float32(0))

    @jit
    def begin(work, part, first, last):
        """The chunk, with its ring of p as it is before row 0."""
        channels, count, branches = work.C, last - first, work.inner
        groups = (channels + work.group_0 - 1) // work.group_0
        chunk = part * groups + first // work.group_0
        images = min(work.part, work.N - part * work.part)
        own, line = count * 4, images * (work.width + 2) * count * 4
        ring = work.rings + chunk * work.ring
        summed = ring + RING * (2 + branches) * line
        each = summed + line
        start = part * work.part * work.height * work.width
        at = fields(
            *(images, work.width, work.height, count, channels * size, 2 * channels * size, own),
            *(line, channels * 4),
            *(work.x + (start * channels + first) * size, 0, 0),
            work.grad + (start * 2 * channels + first) * size,
            work.grad_residual + (start * channels + first) * size,
            *(ring, ring + RING * line),
            work.kernel + first * 4,
            work.kernel_sums + (part * 9 * (1 + branches) * channels + first) * 4,
            *(each, each + own, each + 2 * own, each + 3 * own, each + 4 * own, each + 5 * own),
            *(each, each, each + 8 * own, each + 6 * own, each + 7 * own, np.float32(work.slope)),
            *(summed, channels * 4, work.sums + first * 4),
        )
        shifts(at, first, work.bias_before, work.bias)
        blank(at, at.ring)
        return at

    @jit
    def branch(at, b):
        """The chunk as one of the branches has it, from 1 on; 0 is the merged one."""
        centre, k1, k2 = at.high2, at.k1, at.k2
        if b:
            centre = at.table + 3 * (b - 1) * at.channels
            k1, k2 = centre + at.channels, centre + 2 * at.channels
        return fields(
            *(at.images, at.width, at.height, at.count, at.step, at.stride, at.pitch),
            *(at.line, at.reach, at.x, at.out, at.residual, at.grad, at.to, at.ring),
            *(at.rest + RING * b * at.line, at.kernel + 9 * b * at.reach),
            *(at.sums + 9 * b * at.reach, at.high, at.a, at.b),
            *(centre, at.a2, at.b2, k1, k2),
            *(at.centre + 4 * b * at.count, at.total, at.square, at.floor),
            *(at.summed, at.channels, at.table),
        )

    return SimpleNamespace(begin=begin, branch=branch, number=number)


def _tallying(of: SimpleNamespace) -> Any:
    begin, branch, step, tally_next = of.begin, of.branch, of.step, of.tally

    @jit
    def tally_branches(work, part, first, last):
        at, count = begin(work, part, first, last), 1 + work.inner
        for r in range(at.height + 1):
            step(at, r)
            for b in range(count if r else 0):
                means = work.partials + (2 * (part * count + b) * work.C + first) * 8
                tally_next(branch(at, b), r - 1, means, means + work.C * 8)

    return tally_branches


def _adding(of: SimpleNamespace) -> Any:
    number = of.number
    sum_at, put_sum, _ = array("sums", np.float64)

    @jit
    def add(at, first_row, totals):
        """A row's sum to those of the rows before."""
        for i in range(at.count):
            before = 0.0 if first_row else sum_at(totals, i)
            put_sum(totals, i, before + float(number(at.total, i)))

    return add


def _reducing(of: SimpleNamespace, do: SimpleNamespace) -> Any:
    begin, step, add = of.begin, of.step, of.add
    descend, weigh, total = do.descend, do.weigh, do.total

    @jit
    def reduce_branches(work, part, first, last):
        at = begin(work, part, first, last)
        blank(at, at.rest)
        for k in range(9):
            fill(at.sums + k * at.reach, at.count, 0)
        for r in range(at.height + 1):
            step(at, r)
            if r:
                descend(at, r - 1, 1, 0)
                weigh(at, r - 1, 1, 0)
                total(at, r - 1, 1, 0)
                add(at, r == 1, work.partials + (part * work.C + first) * 8)

    return reduce_branches


def _unjoining(of: SimpleNamespace, do: SimpleNamespace) -> Any:
    begin, branch, step, add = of.begin, of.branch, of.step, of.add
    descend, lower, weigh, spread, finish = do.descend, do.lower, do.weigh, do.spread, do.finish

    @jit
    def unjoin_branches(work, part, first, last):
        at, count = begin(work, part, first, last), 1 + work.inner
        for b in range(count):
            blank(at, branch(at, b).rest)
        for k in range(9 * count):
            fill(at.sums + k * at.reach, at.count, 0)
        for r in range(at.height + 2):
            if r <= at.height:
                step(at, r)
            for b in range(count):
                one = branch(at, b)
                if r > at.height:
                    fill(row(at, one.rest, at.height), at.line // 4, 0)
                elif r and b == 0:
                    descend(one, r - 1, 1, 0)
                elif r:
                    lower(one, r - 1, 1, 0)
                    weigh(one, r - 1, 1, 0)
                if r > 1:
                    spread(one, r - 2, b, 0)
            if r > 1:
                finish(at, r - 2, 3 * (count - 1), 0)
                add(at, r == 2, work.partials + (part * work.C + first) * 8)

    return unjoin_branches
