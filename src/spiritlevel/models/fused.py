"""Parts of Ghost networks as one operation in training, where that is exact.

The layers stay what they are: their parameters and buffers are read here, and none is called. So
where somebody looks at a layer, or has put another in its place, there is no such operation, with
one warning; and whoever observes our norms is told of them as if they had run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import Activation
from spiritlevel.kernels.remade import remember, spared
from spiritlevel.models.aside import (
    ACTS,
    by_layers,
    cast,
    channels_last,
    foreign,
    has_type,
    is_cheap,
    is_float,
    is_pointwise,
    is_product,
    may_run,
    trains,
)
from spiritlevel.models.convolved import convolved
from spiritlevel.models.normed import normalised
from spiritlevel.nn import BatchNorm2d, BatchNormAct2d
from spiritlevel.nn.observe import observed, tell_of

__all__ = ["ghost_module", "squeeze_excite"]

_NORMS: tuple[type, ...] = (BatchNorm2d, BatchNormAct2d)


def ghost_module(
    module: Any, x: Tensor, residual: Callable[[], Any] | None = None, *, alone: bool = False
) -> Tensor | None:
    """What a `GhostModule` gives before its attention, and what `residual` gives added to it.

    `alone`: nothing else reads x, which is then made again, not kept, where that costs little.
    None where its layers must be called; nothing has run by then that could be told.
    """
    if by_layers() or not (module.training and may_run(x, gpu=True)):
        return None
    parts = module._modules
    first, second = parts["primary_conv"], parts["cheap_operation"]
    layers: list[Any] = [*first._modules.values(), *second._modules.values()]
    if len(layers) != 6 or type(parts["bn"]) is not nn.Identity:
        return None
    conv, norm, act, cheap, norm2, act2 = layers
    if not (type(norm) in _NORMS and type(norm2) in _NORMS):
        return None
    if type(act) is type(act2) and type(act) not in ACTS:  # it was made so
        return None
    halves = (first, nn.Sequential), (second, nn.Sequential)
    convs = (conv, nn.Conv2d), (cheap, nn.Conv2d)
    acts = (act, *ACTS), (act2, *ACTS), (parts["bn"], nn.Identity), (parts["act"], nn.Identity)
    if foreign(*halves, *convs, (norm, *_NORMS), (norm2, *_NORMS), *acts):
        return None
    kind, channels = _activation(norm, act), conv.out_channels
    if (
        kind is None
        or kind != _activation(norm2, act2)
        or module.out_chs != 2 * channels
        or not is_cheap(cheap, channels, x.device)
        or not (trains(norm, channels, x.device) and trains(norm2, channels, x.device))
    ):
        return None
    weight, y = None, x
    if is_product(conv, x):
        weight, y = conv.weight, cast(x)
    else:
        y = convolved(conv, x)
    if not has_type(y.dtype, y) or not channels_last(y) or y.shape[0] * y.shape[2:].numel() == 1:
        return None
    added = None if residual is None else residual()
    return _joined(y, _Layers(weight, norm, act, cheap, norm2, act2, kind), added, alone)


def squeeze_excite(module: Any, x: Tensor) -> Tensor | None:
    """What a `SqueezeExcite` gives; None where its layers must be called."""
    if not (module.training and may_run(x)):
        return None
    reduce, expand = module.conv_reduce, module.conv_expand
    if foreign((reduce, nn.Conv2d), (expand, nn.Conv2d)):
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
    from spiritlevel.kernels.ghost_module import Norm, ghost_halves

    kernels, count = backend.ours(x), x.numel() // x.shape[1]

    def followed(norm: Any) -> Norm:
        running = norm.running_mean, norm.running_var, norm.momentum, count / (count - 1)
        return Norm(norm.weight, norm.bias, norm.eps, running)

    backend.ran[kernels] += 2
    weight, norm, _, cheap, norm2, _, act = layers
    whole = (x.shape[0], 2 * cheap.in_channels, *x.shape[2:])
    fits = isinstance(residual, Tensor) and residual.shape == whole and residual.dtype is x.dtype
    torch._foreach_add_([norm.num_batches_tracked, norm2.num_batches_tracked], 1)
    first, second = followed(norm), followed(norm2)
    given = x, weight, first, cheap.weight, second, act, residual if fits else None
    with spared(x) if alone and kernels == "cpu" else nullcontext():
        out, y, found = ghost_halves(*given, kernels)
    if residual is None and kernels == "cpu":
        from spiritlevel.kernels.ghost import again

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

    tell_of(norm, y.shape, first, lambda: found[:2])
    tell_of(act, y.shape, lambda: (first()[1], kind(first()[1])))
    tell_of(norm2, y.shape, second, lambda: found[2:])
    tell_of(act2, y.shape, lambda: (second()[1], kind(second()[1])))


def _is_linear(conv: nn.Conv2d, inner: int, outer: int) -> bool:
    return is_pointwise(conv, inner, outer) and conv.bias is not None and is_float(conv.bias, outer)


def _activation(norm: Any, act: nn.Module) -> Activation | None:
    """Of a norm and the layer after it, one of which is none."""
    after = ACTS.get(type(act))
    if type(norm) is not BatchNormAct2d:
        return after
    within: Activation = norm.act
    return within if after == Activation("identity") and within in ACTS.values() else None
