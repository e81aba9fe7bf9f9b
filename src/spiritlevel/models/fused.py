"""Parts of Ghost networks as one operation in training, where that is exact.

The layers stay what they are: their parameters and buffers are read here, and none is called. So
where somebody looks at a layer, or has put another in its place, there is no such operation, with
one warning; and whoever observes our norms is told of them as if they had run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import Activation
from spiritlevel.kernels.remade import remember, spared
from spiritlevel.nn import BatchNorm2d, BatchNormAct2d
from spiritlevel.nn.observe import observed, tell_of

__all__ = ["chained", "convolved", "ghost_module", "laid_out", "squeeze_excite", "stands_alone"]

_NORMS: tuple[type, ...] = (BatchNorm2d, BatchNormAct2d)
_ACTS = {nn.Identity: Activation("identity"), nn.ReLU: Activation("relu")}
_TYPES = (torch.float32, torch.bfloat16)


def ghost_module(
    module: Any, x: Tensor, residual: Callable[[], Any] | None = None, *, alone: bool = False
) -> Tensor | None:
    """What a `GhostModule` gives before its attention, and what `residual` gives added to it.

    `alone`: nothing else reads x, which is then made again, not kept, where that costs little.
    None where its layers must be called; nothing has run by then that could be told.
    """
    if not (module.training and _may_run(x)):
        return None
    parts = module._modules
    first, second = parts["primary_conv"], parts["cheap_operation"]
    layers: list[Any] = [*first._modules.values(), *second._modules.values()]
    if len(layers) != 6 or type(parts["bn"]) is not nn.Identity:
        return None
    conv, norm, act, cheap, norm2, act2 = layers
    if not (type(norm) in _NORMS and type(norm2) in _NORMS):
        return None
    if type(act) is type(act2) and type(act) not in _ACTS:  # it was made so
        return None
    halves = (first, nn.Sequential), (second, nn.Sequential)
    convs = (conv, nn.Conv2d), (cheap, nn.Conv2d)
    acts = (act, *_ACTS), (act2, *_ACTS), (parts["bn"], nn.Identity), (parts["act"], nn.Identity)
    if _foreign(*halves, *convs, (norm, *_NORMS), (norm2, *_NORMS), *acts):
        return None
    kind, channels = _activation(norm, act), conv.out_channels
    if (
        kind is None
        or kind != _activation(norm2, act2)
        or module.out_chs != 2 * channels
        or not _is_cheap(cheap, channels)
        or not (_trains(norm, channels) and _trains(norm2, channels))
    ):
        return None
    weight, y = None, x
    if _is_product(conv, x):
        weight, y = conv.weight, _cast(x)
    else:
        y = convolved(conv, x)
    if y.dtype not in _TYPES or not _channels_last(y) or y.shape[0] * y.shape[2:].numel() == 1:
        return None
    added = None if residual is None else residual()
    return _joined(y, _Layers(weight, norm, act, cheap, norm2, act2, kind), added, alone)


def convolved(layer: Any, x: Tensor) -> Tensor:
    """layer(x), of a convolution or a linear layer, by another than torch's where that is slow."""
    y = _linear(layer, x) if type(layer) is nn.Linear else _convolved(layer, x)
    y = layer(x) if y is None else y
    return y


def _linear(layer: nn.Linear, x: Tensor) -> Tensor | None:
    """In float32, where torch's of bfloat16 is slow; None where the layer is to be called."""
    if not (layer.training and _may_run(x, dense=False, dim=2) and stands_alone(layer)):
        return None
    x = _cast(x)
    if x.dtype is not torch.bfloat16 or _has_bfloat16():
        return None
    with torch.autocast("cpu", enabled=False):
        return F.linear(x.float(), layer.weight, layer.bias).to(x.dtype)


def chained(layers: nn.Module, x: Tensor) -> Tensor:
    """layers(x), whose convolutions are `convolved`."""
    alone = type(layers) is nn.Sequential and stands_alone(layers)
    if not (alone and layers.training and _may_run(x)):
        y: Tensor = layers(x)
        return y
    for layer in layers.children():
        x = convolved(layer, x) if type(layer) is nn.Conv2d else layer(x)
    return x


def _convolved(conv: Any, x: Tensor) -> Tensor | None:
    """None where the layer is to be called."""
    if type(conv) is not nn.Conv2d or not (conv.training and _may_run(x) and stands_alone(conv)):
        return None
    weight, bias, groups = conv.weight, conv.bias, conv.groups
    if not (_is_float(weight, *weight.shape) and (bias is None or _is_float(bias, len(weight)))):
        return None
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None  # which `depthwise` and `widened` do not know
    from spiritlevel.kernels import convolutions

    x = _cast(x)
    if x.dtype is torch.float32 and conv.kernel_size == (1, 1) == x.shape[2:] and groups == 1:
        return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
    plain = bias is None and conv.dilation == (1, 1) and x.shape[1] == conv.in_channels
    if plain and groups == conv.in_channels == conv.out_channels and _is_small(conv, x):
        return convolutions.depthwise(x, weight, _two(conv.stride), _two(conv.padding))
    if x.dtype is not torch.bfloat16 or _has_bfloat16():
        return None
    if _is_product(conv, x):
        return convolutions.pointwise(x, weight)
    options = _two(conv.stride), _two(conv.padding), _two(conv.dilation)
    return convolutions.widened(x, weight, bias, options, groups)


_SMALL = 64
"""Positions of a depthwise convolution's output, of which torch's pass back takes far too long."""


def _is_small(conv: nn.Conv2d, x: Tensor) -> bool:
    padding, strides = _two(conv.padding), _two(conv.stride)
    sides = zip(x.shape[2:], padding, conv.kernel_size, strides, strict=True)
    height, width = ((side + 2 * pad - tap) // step + 1 for side, pad, tap, step in sides)
    return 0 < height * width <= _SMALL and min(height, width) > 0


def _two(sides: Any) -> tuple[int, int]:
    height, width = sides
    return height, width


@cache
def _has_bfloat16() -> bool:
    """Whether torch's convolutions of bfloat16 are made for this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def laid_out(x: Tensor) -> Tensor:
    """x as these operations want it, channels-last, if they may run; brought there once."""
    return x.contiguous(memory_format=torch.channels_last) if _may_run(x, dense=False) else x


def squeeze_excite(module: Any, x: Tensor) -> Tensor | None:
    """What a `SqueezeExcite` gives; None where its layers must be called."""
    if not (module.training and _may_run(x)):
        return None
    reduce, expand = module.conv_reduce, module.conv_expand
    if _foreign((reduce, nn.Conv2d), (expand, nn.Conv2d)):
        return None
    channels, hidden = x.shape[1], reduce.out_channels
    if not (_is_linear(reduce, channels, hidden) and _is_linear(expand, hidden, channels)):
        return None
    from spiritlevel.kernels.squeeze import squeeze_excite

    weights = reduce.weight, reduce.bias, expand.weight, expand.bias
    return squeeze_excite(x, weights, module.gate)


class _Layers(NamedTuple):
    """What is read of a module's layers; no weight where the first convolution was called."""

    weight: Tensor | None
    norm: Any
    act: nn.Module
    cheap: nn.Conv2d
    norm2: Any
    act2: nn.Module
    kind: Activation


def _joined(x: Tensor, layers: _Layers, residual: Any, alone: bool) -> Tensor:
    from spiritlevel.kernels.ghost import Norm, again
    from spiritlevel.kernels.ghost_module import ghost_halves

    count = x.numel() // x.shape[1]

    def followed(norm: Any) -> Norm:
        norm.num_batches_tracked.add_(1)
        running = norm.running_mean, norm.running_var, norm.momentum, count / (count - 1)
        return Norm(norm.weight, norm.bias, norm.eps, running)

    backend.ran["cpu"] += 2
    weight, norm, _, cheap, norm2, _, act = layers
    whole = (x.shape[0], 2 * cheap.in_channels, *x.shape[2:])
    fits = isinstance(residual, Tensor) and residual.shape == whole and residual.dtype is x.dtype
    first, second = followed(norm), followed(norm2)
    given = x, weight, first, cheap.weight, second, act, residual if fits else None
    with spared(x) if alone else nullcontext():
        out, y, found = ghost_halves(*given)
    if residual is None:
        parts = first.weight, first.bias, cheap.weight, second.weight, second.bias
        remember(out, again, y, *parts, act.name, (first.eps, second.eps), *found)
    if observed():
        _told(y, layers, found)
    return out if residual is None or fits else out + residual


def _told(y: Tensor, layers: _Layers, found: Any) -> None:
    """Of both norms, and of the activations after them if those are layers.

    What passes through them is made again from the first convolution's output, where it is wanted.
    """
    _, norm, act, cheap, norm2, act2, kind = layers

    @cache
    @torch.no_grad()
    def first() -> tuple[Tensor, Tensor]:
        return y, normalised(norm, y, *found[:2])

    @cache
    @torch.no_grad()
    def second() -> tuple[Tensor, Tensor]:
        p = kind(first()[1])
        c = F.conv2d(p, cheap.weight.to(p.dtype), None, 1, 1, 1, p.shape[1])
        return c, normalised(norm2, c, *found[2:])

    def normalised(norm: Any, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        moments = mean.float(), var.float()
        z = F.batch_norm(x, *moments, norm.weight, norm.bias, False, 0.0, norm.eps)
        return kind(z) if type(norm) is BatchNormAct2d else z

    tell_of(norm, y.shape, first, lambda: found[:2])
    tell_of(act, y.shape, lambda: (first()[1], kind(first()[1])))
    tell_of(norm2, y.shape, second, lambda: found[2:])
    tell_of(act2, y.shape, lambda: (second()[1], kind(second()[1])))


def _may_run(x: Any, *, dense: bool = True, dim: int = 4) -> bool:
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.dim() != dim:
        return False
    if (dense and not _channels_last(x)) or not backend.by_us(x) or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    return not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") in _TYPES


def _cast(x: Tensor) -> Tensor:
    """As a convolution casts it."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _foreign(*places: Any) -> bool:
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
    warnings.warn(f"some of a Ghost network runs layer by layer, slower, for {what}", stacklevel=6)


def _is_product(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is the 1x1 convolution that our kernels have."""
    return conv.bias is None and _is_pointwise(conv, x.shape[1], conv.out_channels)


def _is_linear(conv: nn.Conv2d, inner: int, outer: int) -> bool:
    return (
        _is_pointwise(conv, inner, outer) and conv.bias is not None and _is_float(conv.bias, outer)
    )


def _is_pointwise(conv: nn.Conv2d, inner: int, outer: int) -> bool:
    options = (conv.stride, conv.padding, conv.groups)
    return options == ((1, 1), (0, 0), 1) and _is_float(conv.weight, outer, inner, 1, 1)


def _is_cheap(conv: nn.Conv2d, chs: int) -> bool:
    """Whether it is the depthwise 3x3 convolution that our kernels have."""
    options = (conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.groups)
    return (
        options == ((1, 1), (1, 1), (1, 1), "zeros", chs)
        and conv.bias is None
        and _is_float(conv.weight, chs, 1, 3, 3)
    )


def _is_float(weight: Any, *shape: int) -> bool:
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.dtype is torch.float32
        and weight.device.type == "cpu"
        and weight.shape == shape
    )


def _activation(norm: Any, act: nn.Module) -> Activation | None:
    """Of a norm and the layer after it, one of which is none."""
    after = _ACTS.get(type(act))
    if type(norm) is not BatchNormAct2d:
        return after
    within: Activation = norm.act
    return within if after == Activation("identity") and within in _ACTS.values() else None


def _trains(norm: Any, channels: int) -> bool:
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
        and all(_is_float(t, channels) and t.is_contiguous() for t in own)
    )
