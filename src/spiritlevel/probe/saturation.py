"""Activations that can fall silent or saturate, and which share of their values does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "saturated"]

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Hardswish,
    nn.SiLU,
    nn.GELU,
)
_EDGE = 0.01
"""Within it of a bound the slope of a sigmoid or tanh is below 4 % of its largest."""


def saturated(activation: nn.Module, y: Tensor) -> Tensor | None:
    """The share of outputs at a bound above, or at both of a sigmoid's; None without a bound."""
    if isinstance(activation, nn.Sigmoid):
        at_bound = (y < _EDGE) | (y > 1 - _EDGE)
    elif isinstance(activation, nn.Tanh):
        at_bound = y.abs() > 1 - 2 * _EDGE
    elif isinstance(activation, nn.Hardsigmoid):
        at_bound = (y <= 0) | (y >= 1)
    elif isinstance(activation, nn.ReLU6):
        at_bound = y >= 6
    elif isinstance(activation, nn.Hardtanh):
        at_bound = (y <= activation.min_val) | (y >= activation.max_val)
    else:
        return None
    return at_bound.to(torch.float64).mean()
