"""Subjects must compute the same before any of them is timed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spiritlevel.errors import SpiritlevelError

__all__ = ["OF_TYPES", "TOLERANCE", "Mismatch", "agree"]

TOLERANCE = 1e-4
"""Of the largest number of a tensor, for float32 sums of up to some 10**6 terms in any order.

A wrong eps or a biased variance in the place of an unbiased one is further off.
"""
OF_TYPES = {torch.float32: TOLERANCE, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""For tensors of halves, which others round after each of several operations."""


class Mismatch(SpiritlevelError):
    """A subject computes something else than the others: its time would mean nothing."""


def agree(
    name: str,
    got: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    *,
    where: str,
    tolerance: float = TOLERANCE,
) -> float:
    """The largest distance, relative to the largest number of its tensor.

    Raises Mismatch where it is above the tolerance, or NaN.
    """
    assert got.keys() == wanted.keys(), (got.keys(), wanted.keys())
    worst = 0.0
    for what, right in wanted.items():
        if got[what].shape != right.shape:
            raise Mismatch(
                f"got {what} of shape {tuple(got[what].shape)} from {name} at {where}; wanted "
                f"{tuple(right.shape)}, as eager torch has it. Nothing was timed"
            )
        scale = float(right.abs().max()) or 1.0
        distance = float((got[what].float() - right.float()).abs().max()) / scale
        if not distance <= tolerance:
            raise Mismatch(
                f"got {what} from {name} at {where} that is {distance:.2g} of its largest number "
                f"away from eager torch's; wanted at most {tolerance:g}. Nothing was timed there: "
                "report it, with `spiritlevel env`"
            )
        worst = max(worst, distance)
    return worst
