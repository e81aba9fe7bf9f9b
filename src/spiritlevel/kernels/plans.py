"""Work for kernels: how a tensor is cut into chunks, the stages that each takes, the scratch."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from spiritlevel.kernels import team
from spiritlevel.kernels.backend import MOST_SHAPES, Update
from spiritlevel.kernels.library import kernel, step
from spiritlevel.kernels.passes import DOUBLES, INTEGERS

__all__ = ["Plan", "begin", "run"]


class Plan:
    """How a tensor is cut: chunks of so many channels, bytes of scratch, and where it begins."""

    def __init__(self, dtype: torch.dtype, cut: tuple[int, ...], chunks: int, group: int) -> None:
        self.kind, self.cut, self.chunks, self.group = _KINDS[dtype], cut, chunks, group
        self.fixed: list[int] = []
        self.rooms: list[tuple[int, int]] = []
        self.doubles = 0

    def with_scratch(self, ring: int, height: int, width: int, inner: int, sums: int) -> Plan:
        """`ring` bytes for each chunk, `sums` for the gradients of weights of each part."""
        _, C, *_, parts = self.cut
        # Sums of the parts, coefficients, sums of the norm before, weights, and what chunks use.
        needs = (16 * parts * C, 4 * 5 * C, 16 * parts * C, parts * sums, self.chunks * ring)
        *offsets, total = accumulate((-(-need // 64) * 64 for need in needs), initial=0)
        rooms = ("partials", "coefficients", "partials_before", "kernel_sums", "rings")
        known = dict(zip(("N", "C", "S", "fold", "spread", "part", "parts"), self.cut, strict=True))
        known |= {"training": 1, "ring": ring, "height": height, "width": width, "inner": inner}
        self.rooms = [(_PLACES[name], offset) for name, offset in zip(rooms, offsets, strict=True)]
        self.fixed, self.doubles = [0] * len(_PLACES), total // 8
        for name, number in known.items():
            self.fixed[_PLACES[name]] = number
        return self


@lru_cache(MOST_SHAPES)
def begin(plan: Plan, *names: str) -> bytes:
    """What the work of a call begins with: its stages."""
    numbers: list[int] = []
    for name in names:
        layout = _LAYOUTS[name]
        kind = "f32" if layout == "channels" else plan.kind
        chunks, group = plan.chunks, plan.group
        if name.startswith("settle"):
            group = _ONCE[name]
            chunks = -(-plan.cut[1] // group)
        numbers += [0, 0, step(name, layout, kind, "identity", ""), chunks, group, 0]
    numbers += [0] * (INTEGERS.index("steps") - len(numbers)) + [len(names), 0]
    return struct.pack(f"{len(numbers)}q", *numbers)


_KINDS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_LAYOUTS = dict.fromkeys(("settle", "settle_sums"), "channels")
_LAYOUTS |= dict.fromkeys(("tally", "join", "reduce", "unjoin", "settle_before"), "cheap")
_LAYOUTS |= dict.fromkeys(("produce", "consume", "settle_products"), "products")
_LAYOUTS |= dict.fromkeys(("slide", "slide_back", "settle_kernel"), "sliding")
_LAYOUTS |= dict.fromkeys(("squeeze", "gate", "weigh", "ungate"), "gates")
_LAYOUTS |= dict.fromkeys(("tally_branches", "reduce_branches", "unjoin_branches"), "branched")
_LAYOUTS |= dict.fromkeys(("mix", "unmix", "unmix_all"), "mixed")
_LAYOUTS |= dict.fromkeys(("gram", "map", "map_weights", "map_back"), "mapped")
_ONCE = {
    "settle": 128,
    "settle_sums": 128,
    "settle_before": 32,
    "settle_products": 8,
    "settle_kernel": 32,
}
"""Channels of a chunk of what is done once a channel."""
_FIRST = INTEGERS.index("x")
_WORK = struct.Struct(f"{len(INTEGERS) - _FIRST}q{len(DOUBLES)}d")
_PLACES = {name: place for place, name in enumerate(INTEGERS[_FIRST:])}
_Buffer: Any = ctypes.c_char * (8 * (len(INTEGERS) + len(DOUBLES)))


def run(
    plan: Plan,
    start: bytes,
    tensors: Mapping[str, Tensor | None],
    eps: float = 0.0,
    eps_before: float = 0.0,
    running: Update | None = None,
    floor: float = 0.0,
) -> None:
    """Go through the stages of `start` with these tensors, each in the field of its name.

    `floor` is what an activation lets nothing below: see `cheap`.
    """
    given = plan.fixed.copy()
    room = torch.empty(plan.doubles, dtype=torch.float64)
    at = room.data_ptr()
    for place, offset in plan.rooms:
        given[place] = at + offset
    for name, t in tensors.items():
        if t is not None:
            given[_PLACES[name]] = t.data_ptr()
    share, factor = 0.0, 1.0
    if running is not None:
        mean, var, share, factor = running
        given[_PLACES["running_mean"]] = mean.data_ptr()
        given[_PLACES["running_var"]] = var.data_ptr()
    buffer = _Buffer()
    buffer[: len(start)] = start
    _WORK.pack_into(buffer, len(start), *given, eps, floor, share, factor, 0.0, eps_before)
    team.run(kernel(), ctypes.addressof(buffer), min(team.threads(), plan.chunks))
