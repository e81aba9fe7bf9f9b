"""Which batch norms may become fused layers, and why the others stay as they are."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from spiritlevel.nn import FrozenBatchNormAct, SyncBatchNorm, batch
from spiritlevel.surgery import of_timm
from spiritlevel.surgery.tracer import Slot, touched

__all__ = ["FUSED", "PLAIN", "adds", "ends_in_more", "places", "plain", "why_left"]

PLAIN: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.BatchNorm1d: batch.BatchNorm1d,
    nn.BatchNorm2d: batch.BatchNorm2d,
    nn.BatchNorm3d: batch.BatchNorm3d,
    batch.BatchNorm1d: batch.BatchNorm1d,
    batch.BatchNorm2d: batch.BatchNorm2d,
    batch.BatchNorm3d: batch.BatchNorm3d,
}
"""Exact class -> ours, of one operation."""
FUSED: dict[type[nn.Module], type[_BatchNorm]] = {
    batch.BatchNorm1d: batch.BatchNormAct1d,
    batch.BatchNorm2d: batch.BatchNormAct2d,
    batch.BatchNorm3d: batch.BatchNormAct3d,
}


def plain(kind: type[nn.Module]) -> type[_BatchNorm] | None:
    """Ours that normalizes as it does, whatever it ends in; None where there is none."""
    return batch.BatchNorm2d if of_timm.is_timms(kind) else PLAIN.get(kind)


def adds(module: nn.Module) -> bool:
    """Whether its forward takes a residual."""
    return type(module) in FUSED.values() or isinstance(module, SyncBatchNorm | FrozenBatchNormAct)


def ends_in_more(module: nn.Module) -> bool:
    """Whether it is known to do more than normalize: to add, or to end in an activation."""
    if isinstance(module, SyncBatchNorm):
        return module.fused
    return type(module) in FUSED.values() or isinstance(module, FrozenBatchNormAct)


def places(model: nn.Module) -> dict[nn.Module, list[Slot]]:
    """Where each module is registered."""
    found: dict[nn.Module, list[Slot]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                found.setdefault(child, []).append(Slot(parent, name))
    return found


def why_left(model: nn.Module) -> dict[_BatchNorm, str | None]:
    """Each batch norm that is not yet a fused one: why it is left alone, or None."""
    registered = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    owners = Counter(
        p for m in model.modules() for p in set(m._parameters.values()) if p is not None
    )
    learns = any(p.requires_grad for p in model.parameters())
    fused = tuple(FUSED.values())
    return {
        module: _why(module, registered[module], owners, learns, model.training)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, fused)
    }


def _why(
    norm: _BatchNorm,
    times: int,
    owners: Counter[nn.Parameter],
    learns: bool,
    training: bool,
) -> str | None:
    parameters = [p for p in norm._parameters.values() if p is not None]
    if parametrize.is_parametrized(norm):
        return "is parametrized"
    if isinstance(norm, LazyModuleMixin):
        return "is lazy; run the model once, then fuse"
    if plain(type(norm)) is None:
        return f"is a {type(norm).__name__}, not one of torch's own BatchNorm1d, 2d and 3d"
    if times > 1:
        return f"is shared: it has {times} names"
    if why := touched(norm):
        return why
    if any(owners[p] > 1 for p in parameters):
        return "shares its parameters with another module"
    if training and not norm.training:
        return "is frozen: in eval() while the model trains"
    if learns and parameters and not any(p.requires_grad for p in parameters):
        return "is frozen: its parameters take no gradient while others do"
    return of_timm.why_left(norm) if of_timm.is_timms(type(norm)) else None
