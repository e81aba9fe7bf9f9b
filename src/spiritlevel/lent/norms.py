"""Which modules are batch norms, other libraries' included."""

from __future__ import annotations

from torch import nn

__all__ = ["batch_norms"]


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name that take the moments of a batch in training, other libraries' included.

    Frozen kinds, whose affine parameters are buffers, take none and are left out.
    """
    return {name: module for name, module in model.named_modules() if _is_batch_norm(module)}


def _is_batch_norm(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    named = any("BatchNorm" in kind.__name__ for kind in type(module).__mro__)
    frozen = "weight" in module._buffers or "Frozen" in type(module).__name__
    return named and not frozen and not any(module.children())
