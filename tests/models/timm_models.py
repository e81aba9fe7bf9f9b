"""timm, where it is installed."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch


@cache
def timm() -> Any:
    """The module; None where it does not import. torchvision's operators are declared for it."""
    kept = []
    try:
        for name, signature in (
            ("nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
            ("qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ):
            if not hasattr(torch.ops.torchvision, name):
                kept.append(torch.library.Library("torchvision", "FRAGMENT"))
                kept[-1].define(name + signature)
        found = importlib.import_module("timm")
    except (ImportError, RuntimeError):
        return None
    found.declared = kept  # for as long as timm is there
    return found
