"""The norm layers of a model, exchanged for another kind.

Read as norm layers are torch's batch, instance, group and synchronised batch norms, those of
`spiritlevel.nn`, and a LayerNorm that follows a Linear layer in a Sequential. Parameters and
running statistics that both kinds have, in one shape, go over as the same objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from spiritlevel.errors import UsageError
from spiritlevel.nn import (
    FrozenBatchNorm,
    FrozenBatchNormAct,
    NormFactory,
    NormSpec,
    SyncBatchNorm,
    norm_layer,
)
from spiritlevel.surgery.eligible import FUSED, PLAIN, adds, ends_in_more, places
from spiritlevel.surgery.log import Entry, note
from spiritlevel.surgery.tracer import hooked

__all__ = ["convert"]

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm)
_WITH_MORE: dict[type[nn.Module], type[nn.Module]] = {
    **FUSED,
    FrozenBatchNorm: FrozenBatchNormAct,
}
"""Kind -> the one that adds and activates, too."""
_WEIGHTS = {nn.Linear: 1, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def convert(model: nn.Module, norm: NormSpec) -> nn.Module:
    """Exchange the norm layers for those that `norm` names, as `nn.norm_layer` has it, in place.

    Returns the model; a new one only where the model is a norm layer itself. Weight, bias and
    running statistics stay the same objects where shapes agree, with their `requires_grad`; so do
    device, dtype, mode, a layer shared by several places, and what a batch norm does without
    (affine, bias, running statistics, as far as the new layer can). `eps` and `momentum` stay,
    unless `norm` names others. A layer that is fused with what follows it goes to "batch", "sync"
    and "frozen" with its activation; to others it does not. `model.spiritlevel_log` tells which
    layers were converted, and which were left and why. Raises UsageError, and has then changed
    nothing.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"got {type(model).__name__} to convert; wanted a torch.nn.Module")
    norm_layer(norm)
    factory = cache(lambda dim: norm_layer(norm, dim=dim))
    dims, entries = _dims(model), list[Entry]()
    new: dict[nn.Module, nn.Module] = {}
    like = next(_numbers(model), None)
    for path, old in model.named_modules():
        like = next(_numbers(old, recurse=False), like)
        if not isinstance(old, _NORMS):
            continue
        made = _why_left(old) or _made(old, dims[old], norm, factory, like)
        if isinstance(made, nn.Module):
            new[old] = made
            told = f"{_called(old)} -> {_called(made)}{_gained(old, made)}"
            entries.append(Entry("converted", (path,), told))
        else:
            entries.append(Entry("left", (path,), made))
    for old, slots in places(model).items():
        for parent, name in slots if old in new else ():
            parent._modules[name] = new[old]
    log = getattr(model, "spiritlevel_log", ())
    model = new.get(model, model)
    if log:
        model.spiritlevel_log = log
    if isinstance(made_as := getattr(model, "made_as", None), dict) and new:
        vars(model)["made_as"] = {**made_as, "norm": norm} if isinstance(norm, str) else None
    note(model, entries or [Entry("left", (), "there is no norm layer to convert")])
    return model


def _gained(old: nn.Module, new: nn.Module) -> str:
    fresh = isinstance(getattr(new, "running_mean", None), Tensor)
    if isinstance(old, _BatchNorm) and old.running_mean is None and fresh:
        return ", which has running statistics, mean 0 and variance 1 so far"
    return ""


def _called(module: nn.Module) -> str:
    return type(module).__name__


def _why_left(old: nn.Module) -> str | None:
    home = type(old).__module__
    if isinstance(old, LazyModuleMixin):
        return "is lazy; run the model once, then convert"
    if parametrize.is_parametrized(old):
        return "is parametrized"
    if hooked(old):
        return "is hooked"
    if not home.startswith(("torch.nn.", "spiritlevel.nn.")) or "forward" in vars(old):
        return f"is a {_called(old)} with a forward that may do more than normalize"
    return None


def _made(
    old: nn.Module, dim: int | None, norm: NormSpec, factory: Any, like: Tensor | None
) -> nn.Module | str:
    """What takes the layer's place, or why nothing does."""
    untold = f"is a {_called(old)} that does not tell how many axes its input has"
    if dim is None and not isinstance(old, nn.SyncBatchNorm | SyncBatchNorm):
        return untold
    channels = next(
        getattr(old, name)
        for name in ("num_features", "num_channels", "normalized_shape")
        if hasattr(old, name)
    )
    try:
        make: NormFactory = factory(dim or 2)
        new = make(channels if isinstance(channels, int) else channels[0])
    except UsageError as error:
        return str(error)
    if not isinstance(new, nn.Module):
        raise UsageError(
            f"got a function that returns {type(new).__name__} for norm; wanted a function "
            "num_features -> torch.nn.Module"
        )
    if dim is None and not isinstance(new, SyncBatchNorm):
        return untold
    if why := _with_what_follows(old, new, dim):
        return why
    _carry_over(old, new, norm, like)
    return new


def _with_what_follows(old: nn.Module, new: nn.Module, dim: int | None) -> str | None:
    """The new layer ends in the old one's activation, or why it cannot."""
    fused = (
        "is fused with what follows it, which goes to batch, sync and frozen only; convert before "
        "you fuse"
    )
    if isinstance(new, SyncBatchNorm):
        if isinstance(old, SyncBatchNorm):
            new.stands_for = old.stands_for
        elif isinstance(old, tuple(FUSED.values())):
            new.stands_for = cast(type[_BatchNorm], type(old))
        elif dim is None:
            new.stands_for = None
        elif isinstance(old, FrozenBatchNormAct) and new.stands_for is not None:
            new.stands_for = FUSED[new.stands_for]
        new.process_group = new.process_group or getattr(old, "process_group", None)
    elif _may_add(old):
        if (kind := _WITH_MORE.get(type(new))) is None and ends_in_more(old):
            return fused
        new.__class__ = kind or type(new)
    if (ends_in_more(old) or _may_add(old)) and adds(new):
        new.act = old.act
    return None


def _may_add(old: nn.Module) -> bool:
    """Whether it may be given a residual, as far as is known."""
    if isinstance(old, SyncBatchNorm):
        return old.stands_for not in PLAIN.values()
    return ends_in_more(old)


def _numbers(module: nn.Module, *, recurse: bool = True) -> Iterator[Tensor]:
    for tensor in (*module.parameters(recurse), *module.buffers(recurse)):
        if tensor.is_floating_point():
            yield tensor


def _carry_over(old: nn.Module, new: nn.Module, norm: NormSpec, like: Tensor | None) -> None:
    """`like` is the old layer's tensor; where it has none, that of the layer before it."""
    given = norm if isinstance(norm, str) else "eps= momentum="
    for option in ("eps", "momentum"):
        if hasattr(old, option) and hasattr(new, option) and not re.search(rf"\b{option}=", given):
            setattr(new, option, getattr(old, option))
    if isinstance(old, _BatchNorm):
        _go_without(old, new)
    if like is not None:
        new.to(like.device, like.dtype)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        _carry(getattr(old, name, None), new, name)
    new.train(old.training)


def _go_without(old: _BatchNorm, new: nn.Module) -> None:
    """What the batch norm has not, the new layer has not, if it can be without it."""
    if not isinstance(new, FrozenBatchNorm):
        for name in ("weight", "bias"):
            if getattr(old, name) is None and getattr(new, name, None) is not None:
                setattr(new, name, None)
        flag = "elementwise_affine" if isinstance(new, nn.LayerNorm) else "affine"
        if hasattr(new, flag):
            setattr(new, flag, getattr(new, "weight", None) is not None)
    if not old.track_running_stats and type(new) in (*PLAIN, *FUSED.values(), SyncBatchNorm):
        lost: dict[str, Any] = dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"))
        for name, value in {**lost, "track_running_stats": False}.items():
            setattr(new, name, value)


def _carry(value: Any, new: nn.Module, name: str) -> None:
    """The same object, where it is of the same kind there; else the values."""
    here = getattr(new, name, None)
    if not isinstance(value, Tensor) or not isinstance(here, Tensor) or value.shape != here.shape:
        return
    if isinstance(value, nn.Parameter) is isinstance(here, nn.Parameter):
        setattr(new, name, value)
    else:
        here.data.copy_(value.detach())


def _dims(model: nn.Module) -> dict[nn.Module, int | None]:
    """1 for inputs (N, C), 2 for (N, C, H, W), 3 for (N, C, D, H, W); None where nothing tells.

    Classes that do not say it take that of the last convolution or Linear layer registered before
    them that has as many outputs.
    """
    found: dict[nn.Module, int | None] = {}
    before: dict[int, int] = {}
    linear = _after_linear(model)
    for module in model.modules():
        for kind, dim in _WEIGHTS.items():
            if isinstance(module, kind):
                before[getattr(module, "out_channels", getattr(module, "out_features", 0))] = dim
        if not isinstance(module, _NORMS):
            continue
        kind = getattr(module, "stands_for", None) or type(module)
        stated = re.search(r"([123])d$", kind.__name__)
        if stated:
            found[module] = int(stated[1])
        elif isinstance(module, nn.LayerNorm):
            found[module] = 1 if module in linear else None
        else:
            channels = getattr(module, "num_features", getattr(module, "num_channels", 0))
            found[module] = before.get(channels)
    return found


def _after_linear(model: nn.Module) -> set[nn.Module]:
    """LayerNorms of the features of a Linear layer just before them, whose input is (N, C).

    None where the model has others, too: its inputs are (N, tokens, C), then.
    """
    norms = {module for module in model.modules() if isinstance(module, nn.LayerNorm)}
    found = set(_pairs(model))
    return found if found == norms else set()


def _pairs(model: nn.Module) -> Iterator[nn.Module]:
    for parent in model.modules():
        inside = list(parent.children()) if isinstance(parent, nn.Sequential) else []
        for one, other in pairwise(inside):
            if not (isinstance(one, nn.Linear) and isinstance(other, nn.LayerNorm)):
                continue
            if other.normalized_shape == (one.out_features,):
                yield other
