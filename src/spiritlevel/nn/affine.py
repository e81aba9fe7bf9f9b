"""What a batch norm with running statistics does in eval: y = x * factor + shift."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["factor_and_shift"]


def factor_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """(C,) each, in float64, of a layer that has a running mean and a running variance.

    Its weight, its bias and its eps (torch's 1e-5) may be missing.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    mean, var = norm.running_mean.detach().double(), norm.running_var.detach().double()
    factor = (var + float(getattr(norm, "eps", 1e-5))).rsqrt()
    factor = factor if weight is None else factor * weight.detach().double()
    shift = -mean * factor
    return factor, shift if bias is None else shift + bias.detach().double()
