"""What the architectures of all packages need."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.util import find_spec

import torch

__all__ = ["declare_torchvision", "images"]


def images(size: int, channels: int = 3, batch: int = 2, axes: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *[size] * axes)


_DEFINED = []


def declare_torchvision() -> None:
    """Let torchvision be imported where its compiled operators do not fit this torch.

    Its Python code says what shapes its operators give, and so fails where there is no such
    operator. No architecture here calls one.
    """
    while find_spec("torchvision") and "torchvision" not in sys.modules:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.fullmatch(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
            _DEFINED.append(library)
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
