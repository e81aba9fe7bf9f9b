"""timm's BatchNormAct2d, a batch norm that holds its activation: what it computes, if we can, too.

It is known by its name, so that timm need not be there.
"""

from __future__ import annotations

from torch import nn

from spiritlevel.kernels.activations import Activation
from spiritlevel.nn import as_timm
from spiritlevel.surgery.tracer import touched

__all__ = ["ends_in", "is_timms", "why_left"]


def is_timms(kind: type[nn.Module]) -> bool:
    """By its exact class: one derived from it may compute anything."""
    return (kind.__module__, kind.__qualname__) == ("timm.layers.norm_act", "BatchNormAct2d")


def ends_in(norm: nn.Module) -> Activation | None:
    """The activation after it, "identity" where there is none; None for what we cannot compute."""
    act = norm._modules.get("act")
    return None if act is None else as_timm.computed_by(act)


def why_left(norm: nn.Module) -> str | None:
    """Why what it holds beside a batch norm cannot be ours; None where it can."""
    held = norm._modules
    drop, act = held.get("drop"), held.get("act")
    if drop is None or act is None or len(held) > 2:
        return "is timm's BatchNormAct2d, but holds other layers than drop and act"
    if type(drop) is not nn.Identity:
        return f"is timm's BatchNormAct2d with a {type(drop).__name__} before its activation"
    if why := touched(drop) or touched(act):
        return f"is timm's BatchNormAct2d, and its activation {why}"
    if ends_in(norm) is None:
        return f"is timm's BatchNormAct2d, and ends in {type(act).__name__}, which is not ours"
    return None
