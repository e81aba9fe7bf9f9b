"""One string for each normalization, so that a model, a study and a command line say the same.

    name[:size][,key=value...]     batch    batch:momentum=0.01,eps=1e-3    ghost:16,eps=1e-3

See `norm_layer` for the names.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spiritlevel.errors import UsageError
from spiritlevel.nn.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from spiritlevel.nn.frozen import FrozenBatchNorm
from spiritlevel.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from spiritlevel.nn.noise import (
    MomentNoise,
    NoisyBatchNorm1d,
    NoisyBatchNorm2d,
    NoisyBatchNorm3d,
)
from spiritlevel.nn.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from spiritlevel.nn.sync import SyncBatchNorm

__all__ = ["NormFactory", "NormSpec", "norm_layer", "normalizes"]

NormFactory = Callable[[int], nn.Module]
"""num_features -> a layer."""
NormSpec = str | NormFactory


def norm_layer(spec: NormSpec, *, dim: int = 2) -> NormFactory:
    """What makes the norm layers of a model: a function `num_features -> Module`.

    `dim` is 1 for inputs (N, C), 2 for (N, C, H, W), 3 for (N, C, D, H, W).

    | spec | moments of | in eval | learns |
    |---|---|---|---|
    | batch | a channel over the batch | running moments | weight, bias |
    | sync | a channel over the batches of all ranks | running moments | weight, bias |
    | ghost:16 | a channel over 16 samples of the batch | running moments | weight, bias |
    | renorm | a channel over the batch, corrected | running moments | weight, bias |
    | frozen | nothing: constants, see `FrozenBatchNorm` | the same | nothing |
    | group:8 | a sample over each of 8 groups of channels | the same | weight, bias |
    | layer | a sample over all channels | the same | weight, bias |
    | instance | a sample over one channel; not for `dim` 1 | the same | weight, bias |
    | none | nothing: the identity | the same | nothing |
    | noisy-batch, noisy-none | as batch and none, then `moment_noise` | no noise | as those |

    Options are `eps`, for batch, sync, ghost, renorm and noisy-batch `momentum` (none: a cumulative
    average), and for renorm `r_max`, `d_max` and `warmup`. Where 8 groups do not divide the
    channels the greatest common divisor is taken, with one warning from each factory. A function is
    handed back as it is. Raises UsageError.
    """
    if dim not in (1, 2, 3):
        raise UsageError(
            f"got dim={dim!r}; wanted 1 for (N, C), 2 for (N, C, H, W) or 3 for (N, C, D, H, W)"
        )
    if isinstance(spec, str):
        norm, options = _parse(spec)
        return norm.build(spec, dim, **options)
    if not callable(spec) or isinstance(spec, nn.Module):
        raise _refuse(spec, "it is neither a string nor a function num_features -> layer")
    return spec


def normalizes(spec: NormSpec) -> bool:
    """Whether the layer shifts what it has centred, so that what comes before needs no bias.

    False for none and noisy-none; a function is taken to normalize, unless it is `nn.Identity`.
    Raises UsageError.
    """
    return _parse(spec)[0].normalizes if isinstance(spec, str) else spec is not nn.Identity


def _parse(spec: str) -> tuple[_Norm, dict[str, Any]]:
    name, colon, rest = spec.partition(":")
    if name not in _NORMS:
        raise _refuse(spec, f"there is no norm {name!r}")
    norm, options = _NORMS[name], dict[str, Any]()
    for item in rest.split(",") if colon else []:
        key, equals, value = item.partition("=")
        if norm.size and not equals and not options:
            key, value = norm.size, item
        if key not in norm.options:
            known = ", ".join(norm.options) or "none"
            raise _refuse(spec, f"{name} has no option {key!r}; its options: {known}")
        if key in options:
            raise _refuse(spec, f"{key} is given twice")
        try:
            options[key] = norm.options[key](value)
        except ValueError as error:
            raise _refuse(spec, f"{key} is {value!r}, not {error}") from None
    if norm.size and norm.size not in options:
        raise _refuse(spec, f"{name} needs a size, as in {norm.example!r}")
    return norm, options


def _refuse(spec: object, why: str) -> UsageError:
    known = ", ".join(norm.example for norm in _NORMS.values())
    return UsageError(
        f"got norm {spec!r}: {why}. Wanted one of {known}, with options as in "
        "batch:momentum=0.01,eps=1e-3; or a function num_features -> layer"
    )


def _momentum(text: str) -> float | None:
    if text != "none" and not 0 <= _number(text) <= 1:
        raise ValueError("a number from 0 to 1, or none")
    return None if text == "none" else float(text)


def _eps(text: str) -> float:
    if not 0 < _number(text) < math.inf:
        raise ValueError("a number above 0")
    return float(text)


def _r_max(text: str) -> float:
    if not 1 <= _number(text) < math.inf:
        raise ValueError("a number of 1 or more")
    return float(text)


def _d_max(text: str) -> float:
    if not 0 <= _number(text) < math.inf:
        raise ValueError("a number of 0 or more")
    return float(text)


def _steps(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number of 0 or more")
    return int(text)


def _size(text: str) -> int:
    if not (_number(text) >= 1 and text.isdecimal()):
        raise ValueError("a whole number above 0")
    return int(text)


def _number(text: str) -> float:
    """NaN, which fails every comparison, for what is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


_Classes = Mapping[int, Callable[..., nn.Module]]

_BATCH: Mapping[int, type[_BatchNorm]] = {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}
_GHOST: _Classes = {1: GhostBatchNorm1d, 2: GhostBatchNorm2d, 3: GhostBatchNorm3d}
_RENORM: _Classes = {1: BatchRenorm1d, 2: BatchRenorm2d, 3: BatchRenorm3d}
_NOISY: _Classes = {1: NoisyBatchNorm1d, 2: NoisyBatchNorm2d, 3: NoisyBatchNorm3d}
_INSTANCE: _Classes = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def _by_dim(classes: _Classes, _spec: str, dim: int, **options: Any) -> NormFactory:
    return partial(classes[dim], **options)


def _sync(_spec: str, dim: int, **options: Any) -> NormFactory:
    return partial(_synced, dim, options)


def _synced(dim: int, options: Mapping[str, Any], num_features: int) -> nn.Module:
    layer = SyncBatchNorm(num_features, **options)
    layer.stands_for = _BATCH[dim]
    return layer


def _frozen(_spec: str, _dim: int, **options: Any) -> NormFactory:
    return partial(FrozenBatchNorm, **options)


def _layer(_spec: str, dim: int, **options: Any) -> NormFactory:
    return partial(nn.LayerNorm, **options) if dim == 1 else partial(nn.GroupNorm, 1, **options)


def _instance(spec: str, dim: int, **options: Any) -> NormFactory:
    if dim == 1:
        raise _refuse(spec, "one channel of one sample of (N, C) is one value, without variance")
    return partial(_INSTANCE[dim], affine=True, **options)


def _without(layer: type[nn.Module], _spec: str, _dim: int) -> NormFactory:
    return lambda num_features: layer()


class _Group:
    """Makes nn.GroupNorm; `told` once that its groups do not divide the channels."""

    def __init__(self, spec: str, dim: int, groups: int, **options: Any) -> None:
        self.spec, self.dim, self.groups, self.options = spec, dim, groups, options
        self.told = False

    def __call__(self, num_features: int) -> nn.Module:
        groups = math.gcd(self.groups, num_features)
        if self.dim == 1 and groups == num_features:
            raise _refuse(self.spec, f"a group of one of {num_features} features has no variance")
        if groups != self.groups and not self.told:
            self.told = True
            warnings.warn(
                f"norm {self.spec!r}: {self.groups} groups do not divide {num_features} channels; "
                f"took {groups}, the greatest common divisor, and will without saying so again",
                stacklevel=2,
            )
        return nn.GroupNorm(groups, num_features, **self.options)


@dataclass(frozen=True)
class _Norm:
    example: str
    build: Callable[..., NormFactory]
    """(spec, dim, **options); spec is there for the errors."""
    options: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    """Each option's parser, whose ValueError names what it takes."""
    size: str = ""
    """The option that a bare value stands for, and that has no default."""
    normalizes: bool = True


_DIVIDES = {"eps": _eps}
_FOLLOWS = {"momentum": _momentum, "eps": _eps}
_GHOSTS = {"group_size": _size, **_FOLLOWS}
_RENORMS = {**_FOLLOWS, "r_max": _r_max, "d_max": _d_max, "warmup": _steps}
_GROUPS = {"groups": _size, **_DIVIDES}
_NORMS = {
    "batch": _Norm("batch", partial(_by_dim, _BATCH), _FOLLOWS),
    "sync": _Norm("sync", _sync, _FOLLOWS),
    "ghost": _Norm("ghost:16", partial(_by_dim, _GHOST), _GHOSTS, size="group_size"),
    "renorm": _Norm("renorm", partial(_by_dim, _RENORM), _RENORMS),
    "frozen": _Norm("frozen", _frozen, _DIVIDES),
    "group": _Norm("group:8", _Group, _GROUPS, size="groups"),
    "layer": _Norm("layer", _layer, _DIVIDES),
    "instance": _Norm("instance", _instance, _DIVIDES),
    "none": _Norm("none", partial(_without, nn.Identity), normalizes=False),
    "noisy-batch": _Norm("noisy-batch", partial(_by_dim, _NOISY), _FOLLOWS),
    "noisy-none": _Norm("noisy-none", partial(_without, MomentNoise), normalizes=False),
}
