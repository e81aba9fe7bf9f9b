"""For whom the operations that stand for layers step aside, and what tensors they take.

Of a layer nothing is called here: its hooks, its class and its shapes are looked at, at each step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import Activation

__all__ = [
    "ACTS",
    "TYPES",
    "by_layers",
    "cast",
    "channels_last",
    "foreign",
    "has_type",
    "is_cheap",
    "is_float",
    "is_pointwise",
    "is_product",
    "laid_out",
    "layer_by_layer",
    "may_run",
    "stands_alone",
    "trains",
]

TYPES = (torch.float32, torch.bfloat16)
"""On a processor; on a GPU float16 too."""

ACTS = {nn.Identity: Activation("identity"), nn.ReLU: Activation("relu")}
"""Layers after the norms of Ghost modules that our kernels of whole modules know."""

_CPU = torch.device("cpu")
_by_layers = False


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Within the block Ghost modules and norms call their layers, in the whole process.

    Their numbers are then, to the bit, those of modules whose norms are hooked or of another kind.
    """
    global _by_layers
    before, _by_layers = _by_layers, True
    try:
        yield
    finally:
        _by_layers = before


def by_layers() -> bool:
    return _by_layers


def laid_out(x: Tensor) -> Tensor:
    """x as these operations want it, channels-last, if they may run; brought there once."""
    there = may_run(x, dense=False, gpu=True)
    return x.contiguous(memory_format=torch.channels_last) if there else x


def may_run(x: Any, *, dense: bool = True, dim: int = 4, gpu: bool = False) -> bool:
    """`gpu`: whether there are kernels for a GPU, too, of what is to run."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.dim() != dim:
        return False
    if (dense and not channels_last(x)) or not backend.by_us(x, gpu) or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    kind = x.device.type
    return not torch.is_autocast_enabled(kind) or has_type(torch.get_autocast_dtype(kind), x)


def has_type(dtype: torch.dtype, x: Tensor) -> bool:
    """Whether there are kernels for such numbers, where x is."""
    return dtype in TYPES or (x.is_cuda and dtype is torch.float16)


def cast(x: Tensor) -> Tensor:
    """As a convolution casts it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def foreign(*places: Any) -> bool:
    """Whether somebody looks at one of these layers, or it is none of the classes after it.

    Our own who look for a moment are not worth a word; for others there is one warning.
    """
    odd = [layer for layer, *known in places if not _is_own(layer, known)]
    if told := next(filter(None, map(_who, odd)), None):
        _warn(told)
    return bool(odd)


def _is_own(layer: Any, known: list[type]) -> bool:
    return type(layer) in known and stands_alone(layer)


def stands_alone(layer: nn.Module) -> bool:
    """Whether nobody is called with it, or in its place."""
    own = layer.__dict__  # read at each step of each layer, hence not by names that torch looks up
    return not bool(
        "forward" in own
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("_compiled_call_impl") is not None
        or (own["_forward_hooks"] and any(_hooks(layer)))
    )


def _hooks(layer: nn.Module) -> Iterator[Any]:
    """All but those whose owners are told as observers."""
    yield from (h for h in layer._forward_hooks.values() if not getattr(h, "told", False))
    yield from layer._forward_pre_hooks.values()
    yield from layer._backward_hooks.values()
    yield from layer._backward_pre_hooks.values()


def _who(layer: nn.Module) -> str | None:
    """For the warning; None where it is one of our own."""
    hooks, name = list(_hooks(layer)), type(layer).__name__
    if not hooks:
        return f"a {name} in it that is another, or has another forward"
    foreign = [h for h in hooks if not (getattr(h, "__module__", "") or "").startswith(_OURS)]
    return f"a hook on a {name} in it" if foreign else None


_OURS = "spiritlevel."


@cache
def _warn(what: str) -> None:
    warnings.warn(f"some of a network runs layer by layer, slower, for {what}", stacklevel=6)


def is_product(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is the 1x1 convolution that our kernels have."""
    return conv.bias is None and is_pointwise(conv, x.shape[1], conv.out_channels, x.device)


def is_pointwise(conv: nn.Conv2d, inner: int, outer: int, device: torch.device = _CPU) -> bool:
    options = (conv.stride, conv.padding, conv.groups)
    return options == ((1, 1), (0, 0), 1) and is_float(
        conv.weight, outer, inner, 1, 1, device=device
    )


def is_float(weight: Any, *shape: int, device: torch.device = _CPU) -> bool:
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.dtype is torch.float32
        and weight.device == device
        and weight.shape == shape
    )


def is_cheap(conv: nn.Conv2d, chs: int, device: torch.device = _CPU) -> bool:
    """Whether it is the depthwise 3x3 convolution that our kernels have."""
    options = (conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.groups)
    return (
        options == ((1, 1), (1, 1), (1, 1), "zeros", chs)
        and conv.bias is None
        and is_float(conv.weight, chs, 1, 3, 3, device=device)
    )


def trains(norm: Any, channels: int, device: torch.device = _CPU) -> bool:
    """Whether it trains as most do, on tensors that our kernels can take."""
    own = (
        norm.running_mean,
        norm.running_var,
        *(t for t in (norm.weight, norm.bias) if t is not None),
    )
    return bool(
        norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.num_batches_tracked is not None
        and norm.eps > 0
        and all(is_float(t, channels, device=device) and t.is_contiguous() for t in own)
    )
