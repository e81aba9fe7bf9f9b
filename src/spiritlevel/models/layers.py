"""The layers that the convolutional models share: a convolution, its norm, its activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.kernels.activations import activation, module_of
from spiritlevel.models.convolved import convolved
from spiritlevel.models.normed import normed
from spiritlevel.nn import NormFactory, NormSpec, norm_layer, normalizes

__all__ = ["ConvNormAct", "Layers", "make_divisible", "stem_stride"]

_STEM_STRIDES = {"imagenet": 2, "cifar": 1}


def make_divisible(channels: float, divisor: int = 4) -> int:
    """The nearest multiple of `divisor`, at least one of it and at least 90 % of `channels`."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def stem_stride(stem: str) -> int:
    """The stride of the first convolution. Raises UsageError."""
    if stem not in _STEM_STRIDES:
        raise UsageError(f"got stem {stem!r}; wanted one of: {', '.join(_STEM_STRIDES)}")
    return _STEM_STRIDES[stem]


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one model.

    `bias` gives each convolution before a norm a bias, for norms that have none. It starts at 0, as
    a norm's does, and draws nothing, so that a seed draws the same weights whatever the norm.
    """

    norm: NormFactory
    bias: bool = False
    act: str = "relu"

    @classmethod
    def of(cls, norm: NormSpec, act: str = "relu") -> Layers:
        """With the norm and the activation of these names. Raises UsageError."""
        activation(act)
        return cls(norm_layer(norm, dim=2), not normalizes(norm), act)

    def conv(self, in_chs: int, out_chs: int, kernel: Any, **options: Any) -> nn.Conv2d:
        """nn.Conv2d to be followed by a norm; it keeps height and width unless `stride` is given.

        `kernel` is one odd number, or two: (height, width).
        """
        padding = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
        conv = nn.Conv2d(in_chs, out_chs, kernel, padding=padding, bias=False, **options)
        if self.bias:
            conv.bias = nn.Parameter(torch.zeros(out_chs))
        return conv

    def depthwise(self, chs: int, kernel: Any, **options: Any) -> nn.Conv2d:
        """Each channel on its own."""
        return self.conv(chs, chs, kernel, groups=chs, **options)

    def activation(self, wanted: bool = True) -> nn.Module:
        """A new one, or nn.Identity where none is wanted."""
        return module_of(activation(self.act)) if wanted else nn.Identity()


class ConvNormAct(nn.Module):
    """Convolution, norm, activation: (N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride)."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        layers: Layers,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = layers.conv(in_chs, out_chs, kernel, stride=stride, groups=groups)
        self.bn1 = layers.norm(out_chs)
        self.act1 = layers.activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return normed(self.bn1, self.act1, convolved(self.conv, x))
