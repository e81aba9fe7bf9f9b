"""The words in which timm's models ask for a norm with its activation, and that timm knows ours.

timm hands `act_layer` to the classes that it has on two lists only, and calls a class as a plain
norm, with an activation of the model's own to follow, in models that were not written for both.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypedDict

from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.kernels.activations import (
    ACTIVATIONS,
    Activation,
    activation,
    of_module,
    with_options,
)

__all__ = ["TimmsWords", "computed_by", "introduced", "read"]

_IDENTITY = Activation("identity")
_TIMMS_NAMES = {"swish": "silu", "hard_swish": "hardswish", "hard_sigmoid": "hardsigmoid"}
_TIMMS_CLASSES = {"GELU": "gelu"}
"""Of timm's own activations those that compute what torch's do."""


class TimmsWords(TypedDict, total=False):
    """What timm's BatchNormAct2d takes beside torch's; `inplace` changes no number."""

    apply_act: bool
    act_layer: Any
    act_kwargs: Mapping[str, Any] | None
    inplace: bool
    drop_layer: Any


def read(kind: str, act: str | Activation, words: TimmsWords) -> Activation:
    """The activation that `act`, or else timm's words, ask of a layer of class `kind`.

    Called by its constructor. Raises UsageError, and TypeError for words of neither.
    """
    unknown = set(words) - TimmsWords.__annotations__.keys()
    if unknown:
        raise TypeError(f"{kind}.__init__() got an unexpected keyword argument {min(unknown)!r}")
    if words.get("drop_layer") is not None:
        raise UsageError(
            f"got drop_layer={_told(words['drop_layer'])} for {kind}, whose activation comes in "
            "the same pass as its norm; wanted none between them. Take timm.layers.BatchNormAct2d"
        )
    if not words.keys() & {"apply_act", "act_layer"}:
        _refuse_plain(kind, act)
    if not words.get("apply_act", True):
        return _IDENTITY
    if "act_layer" not in words:
        return activation(act)
    if act != "relu":
        raise UsageError(
            f"got act={act!r} and act_layer={_told(words['act_layer'])} for {kind}; wanted one of "
            "them. In a timm model leave act out: act_layer is the model's own argument"
        )
    return _of_layer(kind, words["act_layer"], dict(words.get("act_kwargs") or {}))


def _refuse_plain(kind: str, act: str | Activation) -> None:
    """Raises UsageError where the constructor is called by timm, which says nothing of `act`.

    A user who leaves `act` out makes the same call: only the caller tells them apart.
    """
    caller = sys._getframe(3).f_globals.get("__name__", "")  # past this, `read` and the constructor
    if caller.partition(".")[0] == "timm" and activation(act) != _IDENTITY:
        raise UsageError(
            f"got {kind} as the norm_layer of {caller}, which wants a plain norm and adds "
            f"activations itself: each norm would end in one more ({activation(act)}), also before "
            f"sums. Take spiritlevel.nn.{kind.replace('Act', '')} there, and spiritlevel.fuse"
        )


def _of_layer(kind: str, layer: Any, options: dict[str, Any]) -> Activation:
    """Of a layer as timm's `act_layer`: its name, a class, a function that makes it, or None."""
    options.pop("inplace", None)
    if not layer:
        return _IDENTITY
    if isinstance(layer, str):
        name = _TIMMS_NAMES.get(layer.lower(), layer.lower())
        found = with_options(name, options) if name in ACTIVATIONS else None
    else:
        found = computed_by(_made(layer, options))
    if found is None:
        raise UsageError(
            f"got act_layer={_told(layer)} for {kind}; wanted one of {', '.join(ACTIVATIONS)}, as "
            "torch's layers compute them, or None. Take timm.layers.BatchNormAct2d for others"
        )
    return found


def computed_by(module: nn.Module) -> Activation | None:
    """The activation that a layer of torch's or timm's is, by its exact class; None for others."""
    kind = type(module)
    if kind is nn.Identity:
        return _IDENTITY
    if kind.__module__.startswith("timm.") and kind.__name__ in _TIMMS_CLASSES:
        return Activation(_TIMMS_CLASSES[kind.__name__])
    return of_module(module)


def _made(layer: Any, options: dict[str, Any]) -> nn.Module:
    """With `inplace`, as timm does it, which functions may insist on."""
    try:
        made: nn.Module = layer(inplace=False, **options)
    except TypeError:
        made = layer(**options)
    return made


def _told(layer: Any) -> str:
    return getattr(layer, "__name__", None) or repr(layer)


def introduced(kind: type[nn.Module]) -> bool:
    """Put a class on timm's lists of norms with an activation; False where they are not there.

    Each list is a set of classes, which timm has looked into by these names in all of its 1.x.
    """
    module = sys.modules.get("timm.layers.create_norm_act")
    lists = [getattr(module, name, None) for name in ("_NORM_ACT_TYPES", "_NORM_ACT_REQUIRES_ARG")]
    for known in lists:
        if isinstance(known, set):
            known.add(kind)
    return all(isinstance(known, set) for known in lists)
