"""Convolutions and linear layers in training, where torch's own are slow on this processor."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.models.aside import cast, is_float, is_product, may_run, stands_alone

__all__ = ["chained", "convolved"]


def convolved(layer: Any, x: Tensor) -> Tensor:
    """layer(x), of a convolution or a linear layer, by another than torch's where that is slow."""
    y = _linear(layer, x) if type(layer) is nn.Linear else _convolved(layer, x)
    y = layer(x) if y is None else y
    return y


def _linear(layer: nn.Linear, x: Tensor) -> Tensor | None:
    """In float32, where torch's of bfloat16 is slow; None where the layer is to be called."""
    if not (layer.training and may_run(x, dense=False, dim=2) and stands_alone(layer)):
        return None
    x = cast(x)
    if x.dtype is not torch.bfloat16 or _has_bfloat16():
        return None
    return _in_float32(x, layer.weight, layer.bias)


def _in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.linear(x.float(), weight, bias).to(x.dtype)


def chained(layers: nn.Module, x: Tensor) -> Tensor:
    """layers(x), whose convolutions are `convolved`."""
    alone = type(layers) is nn.Sequential and stands_alone(layers)
    if not (alone and layers.training and may_run(x)):
        y: Tensor = layers(x)
        return y
    for layer in layers.children():
        x = convolved(layer, x) if type(layer) is nn.Conv2d else layer(x)
    return x


def _convolved(conv: Any, x: Tensor) -> Tensor | None:
    """None where the layer is to be called."""
    if type(conv) is not nn.Conv2d or not (conv.training and may_run(x) and stands_alone(conv)):
        return None
    weight, bias, groups = conv.weight, conv.bias, conv.groups
    if not (is_float(weight, *weight.shape) and (bias is None or is_float(bias, len(weight)))):
        return None
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None  # which `depthwise` and `widened` do not know
    from spiritlevel.kernels import convolutions

    x = cast(x)
    slow = x.dtype is torch.bfloat16 and not _has_bfloat16()
    if (slow or x.dtype is torch.float32) and _is_linear(conv, x):
        return _in_float32(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
    plain = bias is None and conv.dilation == (1, 1) and x.shape[1] == conv.in_channels
    depthwise = plain and groups == conv.in_channels == conv.out_channels
    if depthwise and (_halves(conv) or _is_small(conv, x)):
        return convolutions.depthwise(x, weight, _two(conv.stride), _two(conv.padding))
    if not slow:
        return None
    if is_product(conv, x):
        return convolutions.pointwise(x, weight)
    options = _two(conv.stride), _two(conv.padding), _two(conv.dilation)
    return convolutions.widened(x, weight, bias, options, groups)


def _is_linear(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is a linear layer, as on a map of one position."""
    options = (conv.kernel_size, conv.padding, conv.groups, x.shape[1])
    return options == ((1, 1), (0, 0), 1, conv.in_channels) and x.shape[2:] == (1, 1)


def _halves(conv: nn.Conv2d) -> bool:
    """Whether it is one of those that go back in half of torch's time whatever the map."""
    side = conv.kernel_size[0]
    return (
        conv.kernel_size in ((3, 3), (5, 5))
        and conv.stride == (2, 2)
        and _two(conv.padding) == (side // 2, side // 2)
    )


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
