"""Where numbers first stopped being finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.lent.guard import undisturbed
from spiritlevel.lent.heard import removing

__all__ = ["first_not_finite", "parameter_not_finite"]


def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The first layer of the pass that `run` makes whose output is not finite, in words.

    Modules in the order in which they end, so that what a parent's own forward does is told of the
    parent; those whose own parameters are not finite are told so.
    The model is left as it was. None where every output is finite.
    """
    found: list[str] = []

    def ends(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not _finite(output):
                found.append(_told(name, module, inputs))

        return look

    hooks = [
        module.register_forward_hook(ends(name), prepend=True)
        for name, module in model.named_modules()
    ]
    with removing(hooks), undisturbed(model), torch.no_grad():
        run()
    return found[0] if found else None


def _told(name: str, module: nn.Module, inputs: Any) -> str:
    layer = f"{name or 'the model itself'} ({type(module).__name__})"
    broken = parameter_not_finite(module)
    if broken is not None:
        return f"{layer}, whose {broken} is not finite"
    if not _finite(inputs):
        return f"{layer}, whose input is not finite"
    return f"{layer}, whose input is finite and whose output is not"


def parameter_not_finite(module: nn.Module, *, gradients: bool = False) -> str | None:
    """The name of the first parameter or buffer with a NaN or an infinity; or of a gradient."""
    for name, p in module.named_parameters():
        value = p.grad if gradients else p
        if value is not None and not _finite(value):
            return name
    if gradients:
        return None
    # A mask of infinities is a buffer, too: NaN alone is wrong there.
    broken = (
        name for name, b in module.named_buffers() if b.is_floating_point() and b.isnan().any()
    )
    return next(broken, None)


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        if not (value.is_floating_point() or value.is_complex()):
            return True
        return bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True
