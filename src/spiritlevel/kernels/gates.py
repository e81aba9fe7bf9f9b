"""The passes of a gate for each channel of an image, with no copy of the image between them.

squeeze   sum of x over the positions of each image and channel
gate      y = x gate
weigh     sum of grad x, the gradient of the gate
ungate    grad_x = grad gate + shift, where shift is what comes back through the squeeze
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from spiritlevel.kernels.compiled import array, jit, naming, size_of
from spiritlevel.kernels.vectors import over

__all__ = ["passes"]

_BLOCK = np.int64(32)
"""Positions that are in the first cache for all channels, one vector after the other."""

_Image = namedtuple("_Image", "count positions step x out grad total gate shift")


def passes(kind: str) -> dict[str, Any]:
    """Each pass by its name, for elements of `kind`, "f32" or "bf16"."""
    with naming("gates", kind):
        begin, empty = _beginning(kind), _emptying()

        def over_positions(name: str, make: Any, sums: bool) -> Any:
            row = over(name, kind, make)

            with naming(name, kind):

                @jit
                def run(work, part, first, last):
                    at = begin(work, part, first, last)
                    if sums:
                        empty(at)
                    for start in range(0, at.positions, _BLOCK):
                        row(at, start, min(_BLOCK, at.positions - start), 0)

                return run

        return {
            "squeeze": over_positions("squeeze", _squeezing, True),
            "gate": over_positions("gate", _gating, False),
            "weigh": over_positions("weigh_gate", _weighing, True),
            "ungate": over_positions("ungate", _ungating, False),
        }


def _beginning(kind: str) -> Any:
    size, fields = size_of(kind), _Image

    @jit
    def begin(work, part, first, last):
        image = (part * work.S * work.C + first) * size
        numbers = (part * work.C + first) * 4
        return fields(
            *(last - first, work.S, work.C * size),
            *(work.x + image, work.out + image, work.grad + image),
            *(work.grad_weight + numbers, work.weight + numbers, work.bias + numbers),
        )

    return begin


def _emptying() -> Any:
    _, put, _ = array("first", np.float32)

    @jit
    def empty(at):
        for i in range(at.count):
            put(at.total, i, np.float32(0))

    return empty


def _squeezing(v: Any) -> Any:
    @jit
    def squeeze(at, start, count, _other, j):
        total, on = v.splat(np.float32(0)), at.x + start * at.step + j * v.size
        for _ in range(count):
            total = v.add(total, v.load(on))
            on += at.step
        v.keep(at.total + 4 * j, v.add(v.numbers(at.total + 4 * j), total))

    return squeeze


def _gating(v: Any) -> Any:
    @jit
    def gate(at, start, count, _other, j):
        factor, on = v.numbers(at.gate + 4 * j), start * at.step + j * v.size
        for _ in range(count):
            v.store(at.out + on, v.mul(v.load(at.x + on), factor))
            on += at.step

    return gate


def _weighing(v: Any) -> Any:
    @jit
    def weigh(at, start, count, _other, j):
        total, on = v.splat(np.float32(0)), start * at.step + j * v.size
        for _ in range(count):
            total = v.fma(v.load(at.grad + on), v.load(at.x + on), total)
            on += at.step
        v.keep(at.total + 4 * j, v.add(v.numbers(at.total + 4 * j), total))

    return weigh


def _ungating(v: Any) -> Any:
    @jit
    def ungate(at, start, count, _other, j):
        factor, shift = v.numbers(at.gate + 4 * j), v.numbers(at.shift + 4 * j)
        on = start * at.step + j * v.size
        for _ in range(count):
            v.store(at.out + on, v.fma(v.load(at.grad + on), factor, shift))
            on += at.step

    return ungate
