"""What `torch.hub` finds here: every model of `spiritlevel.list_models()`, by its name.

torch.hub.load("PATH/OF/A/CLONE", "ghostnet_100", source="local", num_classes=10)
"""

import sys as _sys
from collections.abc import Callable as _Callable
from pathlib import Path as _Path
from typing import Any as _Any

dependencies = ["torch", "numpy", "safetensors"]

_SOURCE = str(_Path(__file__).resolve().parent / "src")
if _SOURCE not in _sys.path:  # for good: most of the package is loaded when it is first asked for
    _sys.path.insert(0, _SOURCE)

import spiritlevel as _spiritlevel  # noqa: E402


def _entry(name: str) -> _Callable[..., _Any]:
    def entry(pretrained: bool = False, **options: _Any) -> _Any:
        if pretrained:
            raise _spiritlevel.errors.UsageError(
                "got pretrained=True; wanted weights: a path, or hf:OWNER/NAME of the Hugging Face "
                "hub. No weights come with the code"
            )
        return _spiritlevel.create_model(name, **options)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = (
        f"The model {name!r}: `spiritlevel.create_model({name!r}, num_classes=1000, norm='batch', "
        "in_chans=3, stem='imagenet', weights=None, **options)`."
    )
    return entry


globals().update({name: _entry(name) for name in _spiritlevel.list_models()})
