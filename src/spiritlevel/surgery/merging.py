"""A factor and a shift for each channel, put into the weights of the layer before or after them.

All is computed in float64, and rounded once to the layer's own type.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spiritlevel.surgery.carried import LAYERS
from spiritlevel.surgery.tracer import hooked

__all__ = ["is_layer", "merge_after", "merge_before", "why_not", "why_not_before"]


def is_layer(module: nn.Module) -> bool:
    """Whether it runs as torch's own convolution or linear layer, which it may be a kind of."""
    kind = parametrize.type_before_parametrizations(module)
    return any(_runs_as(kind, each) for each in LAYERS)


def why_not(layer: nn.Module) -> str | None:
    """Why nothing can be merged into a layer."""
    kind = parametrize.type_before_parametrizations(layer)
    if any(is_lazy(p) for p in layer.parameters()):
        return "is lazy; run the model once before"
    if hooked(layer):
        return "is hooked (old weight or spectral norm, pruning and quantization hook layers)"
    if "forward" in vars(layer):
        return "has its forward replaced on the instance"
    if not is_layer(layer):
        return f"is a {kind.__name__}, whose forward is its own"
    if parametrize.is_parametrized(layer, "bias"):
        return "has a parametrized bias"
    weight = getattr(layer, "weight", None)
    if not (isinstance(weight, Tensor) and weight.is_floating_point()):
        return "has no weight of floating-point numbers"
    return None


def _runs_as(kind: type[nn.Module], plain: type[nn.Module]) -> bool:
    names = ("forward", "_conv_forward", "_output_padding")
    return issubclass(kind, plain) and all(
        getattr(kind, name, None) is getattr(plain, name, None) for name in names
    )


def why_not_before(layer: nn.Module, shift: Tensor) -> str | None:
    """Why what stands before a layer cannot be merged into it.

    Zeros that the layer pads with get no shift, which the merged bias would give them, too.
    """
    if not bool(shift.any()) or not isinstance(layer, _ConvNd):
        return None
    if isinstance(layer, _ConvTransposeNd):
        alone = set(layer.kernel_size) | set(layer.stride) == {1}
        alone = alone and not any((*layer.padding, *layer.output_padding))
        return None if alone else "it is transposed, and does not take all channels everywhere"
    padding = layer.padding
    none = set(layer.kernel_size) == {1} if padding == "same" else padding == "valid"
    if none or not (isinstance(padding, str) or any(padding)):
        return None
    return None if layer.padding_mode != "zeros" else "it pads with zeros, which are not shifted"


@torch.no_grad()
def merge_after(layer: nn.Module, factor: Tensor, shift: Tensor) -> None:
    """The layer's output, times factor (C,) plus shift (C,) for each channel."""
    weight, bias = _wide(layer)
    if isinstance(layer, _ConvTransposeNd):
        weight = _by_group(weight, layer, lambda w: w * _view(factor, layer.groups, w, 2))
    else:
        weight = weight * factor.view(-1, *[1] * (weight.dim() - 1))
    _set(layer, weight, bias * factor + shift)


@torch.no_grad()
def merge_before(layer: nn.Module, factor: Tensor, shift: Tensor) -> None:
    """The layer's output for its input times factor plus shift, for each channel of the input.

    Where `why_not_before` names no reason.
    """
    weight, bias = _wide(layer)
    if isinstance(layer, nn.Linear):
        _set(layer, weight * factor, bias + weight @ shift)
        return
    assert isinstance(layer, _ConvNd)
    groups, inner = layer.groups, 1 if isinstance(layer, _ConvTransposeNd) else 2
    grouped = _grouped(weight, groups)  # (g, out, in, ...), transposed (g, in, out, ...)
    shifted = grouped * _view(shift, groups, grouped, inner)
    rest = [axis for axis in range(1, grouped.dim()) if axis != 3 - inner]
    scaled = grouped * _view(factor, groups, grouped, inner)
    _set(layer, scaled.flatten(0, 1), bias + shifted.sum(rest).flatten())


def _by_group(
    weight: Tensor, layer: _ConvTransposeNd, change: Callable[[Tensor], Tensor]
) -> Tensor:
    return change(_grouped(weight, layer.groups)).flatten(0, 1)


def _grouped(weight: Tensor, groups: int) -> Tensor:
    return weight.view(groups, -1, *weight.shape[1:])


def _view(values: Tensor, groups: int, grouped: Tensor, axis: int) -> Tensor:
    """(C,) -> (g, .., C / g, ..) with C / g at the axis of a grouped weight."""
    view = [groups] + [1] * (grouped.dim() - 1)
    view[axis] = -1
    return values.view(view)


def _wide(layer: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer.weight, Tensor)
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    weight = layer.weight.detach().double()
    assert isinstance(outputs, int)
    if layer.bias is None:
        return weight, weight.new_zeros(outputs)
    assert isinstance(layer.bias, Tensor)
    return weight, layer.bias.detach().double()


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """New parameters, since others may hold the old ones."""
    assert isinstance(layer.weight, Tensor)
    dtype, learns = layer.weight.dtype, any(p.requires_grad for p in layer.parameters())
    if parametrize.is_parametrized(layer):
        # torch's own way changes the class, which copies of the layer share.
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
    for name, value in (("weight", weight), ("bias", bias)):
        if name in layer._buffers:
            layer._buffers[name] = value.to(dtype)
            continue
        layer._parameters.pop(name, None)
        layer.register_parameter(name, nn.Parameter(value.to(dtype), requires_grad=learns))
