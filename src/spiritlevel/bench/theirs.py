"""timm's GhostNet, where timm is installed: an optional peer, which nothing here depends on."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import nn

from spiritlevel.models.layers import stem_stride

__all__ = ["LEFT_OUT", "ghostnet", "timm", "version"]

LEFT_OUT = "timm is left out: it does not import here"

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def timm() -> Any:
    """The module; None where it does not import.

    torchvision, which timm imports, wants its operators to be there, also where it was built for
    another torch; they are declared for it, and no GhostNet calls them.
    """
    kept = []
    try:
        for name in _OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                declared: Any = torch.library.Library
                kept.append(declared("torchvision", "FRAGMENT"))
                kept[-1].define(f"{name}{_SIGNATURE}")
        found: Any = importlib.import_module("timm")
    except (ImportError, RuntimeError):
        return None
    found.declared = kept  # for as long as timm is there
    return found


def ghostnet(name: str, num_classes: int, stem: str) -> nn.Module | None:
    """Without dropout, with the stem's stride; None where timm does not import."""
    module = timm()
    if module is None:
        return None
    net: Any = module.create_model(name, num_classes=num_classes, drop_rate=0.0)
    net.conv_stem.stride = (stem_stride(stem),) * 2
    return net  # type: ignore[no-any-return]


def version() -> str | None:
    """timm's."""
    return getattr(timm(), "__version__", None)
