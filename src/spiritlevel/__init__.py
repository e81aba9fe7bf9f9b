"""Batch normalization you can see, trust and ship, with GhostNet built in.

Everything public is here, and loaded when it is first asked for: `import spiritlevel` alone does
not even import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spiritlevel import errors as errors
    from spiritlevel import kernels as kernels
    from spiritlevel import nn as nn
    from spiritlevel.doctor.check import check as check
    from spiritlevel.export import export as export
    from spiritlevel.models import create_model as create_model
    from spiritlevel.models import list_models as list_models
    from spiritlevel.probe.watch import Probe as Probe
    from spiritlevel.study import study as study
    from spiritlevel.surgery.convert import convert as convert
    from spiritlevel.surgery.fold import fold as fold
    from spiritlevel.surgery.fuse import fuse as fuse
    from spiritlevel.surgery.recalibrate import recalibrate as recalibrate

__version__ = "0.1.0"
__all__ = [
    "Probe",
    "check",
    "convert",
    "create_model",
    "errors",
    "export",
    "fold",
    "fuse",
    "kernels",
    "list_models",
    "nn",
    "recalibrate",
    "study",
]

_HOME = {
    "Probe": "spiritlevel.probe.watch",
    "check": "spiritlevel.doctor.check",
    "convert": "spiritlevel.surgery",
    "create_model": "spiritlevel.models",
    "fold": "spiritlevel.surgery",
    "fuse": "spiritlevel.surgery",
    "list_models": "spiritlevel.models",
    "recalibrate": "spiritlevel.surgery",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in __all__:
        value = importlib.import_module(f"spiritlevel.{name}")
    else:
        raise AttributeError(
            f"module 'spiritlevel' has no attribute {name!r}; it has: {', '.join(__all__)}"
        )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
