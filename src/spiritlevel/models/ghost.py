"""What GhostNet is built of (Han et al. 2020, section 3): Ghost module and Ghost bottleneck.

Attribute names are those of the published weights, so `bn1` and `bn_dw` are whatever norm was
asked for. `norm` makes it; `bias` gives the convolution before it a bias, for norms that have none.
It starts at 0, as a norm's does, and draws nothing, so that a seed draws the same weights whatever
the norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.nn import NormFactory

__all__ = [
    "ConvNormAct",
    "GhostBottleneck",
    "GhostModule",
    "SqueezeExcite",
    "convolution",
    "make_divisible",
]


def make_divisible(channels: float, divisor: int = 4) -> int:
    """The nearest multiple of `divisor`, at least one of it and at least 90 % of `channels`."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def convolution(in_chs: int, out_chs: int, kernel: int, *, bias: bool, **options: Any) -> nn.Conv2d:
    """nn.Conv2d whose bias, if it has one, starts at 0."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, bias=False, **options)
    if bias:
        conv.bias = nn.Parameter(torch.zeros(out_chs))
    return conv


class ConvNormAct(nn.Module):
    """1x1 convolution, norm, ReLU: (N, in_chs, H, W) -> (N, out_chs, H, W)."""

    def __init__(self, in_chs: int, out_chs: int, norm: NormFactory, bias: bool) -> None:
        super().__init__()
        self.conv = convolution(in_chs, out_chs, 1, bias=bias)
        self.bn1 = norm(out_chs)
        self.act1 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act1(self.bn1(self.conv(x)))
        return y


class SqueezeExcite(nn.Module):
    """x * hard_sigmoid(conv(relu(conv(mean of x)))): (N, C, H, W) -> the same."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        reduced_chs = make_divisible(chs * 0.25)
        self.conv_reduce = nn.Conv2d(chs, reduced_chs, 1)
        self.conv_expand = nn.Conv2d(reduced_chs, chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.conv_expand(F.relu(self.conv_reduce(squeezed))))


class GhostModule(nn.Module):
    """Half of the features from a 1x1 convolution, half from those by a cheap depthwise 3x3 one.

    (N, in_chs, H, W) -> (N, out_chs, H, W), out_chs even; the paper's s = 2, d = 3. The cheap half
    is fed with the first after its norm and ReLU. `relu=False` leaves both ReLUs out.
    """

    def __init__(
        self, in_chs: int, out_chs: int, norm: NormFactory, bias: bool, relu: bool = True
    ) -> None:
        super().__init__()
        assert out_chs % 2 == 0, out_chs
        half = out_chs // 2
        self.primary_conv = nn.Sequential(
            convolution(in_chs, half, 1, bias=bias),
            norm(half),
            nn.ReLU() if relu else nn.Identity(),
        )
        self.cheap_operation = nn.Sequential(
            convolution(half, half, 3, padding=1, groups=half, bias=bias),
            norm(half),
            nn.ReLU() if relu else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)


class GhostBottleneck(nn.Module):
    """Expand, (stride), (squeeze-excitation), project, add the shortcut; no ReLU after the sum.

    (N, in_chs, H, W) -> (N, out_chs, ceil(H / stride), ceil(W / stride)), `mid_chs` between the two
    Ghost modules. `kernel` is that of the strided convolution and of the shortcut's depthwise one.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        kernel: int,
        se: bool,
        stride: int,
        norm: NormFactory,
        bias: bool,
    ) -> None:
        super().__init__()

        def depthwise(chs: int) -> nn.Conv2d:
            options = {"stride": stride, "padding": kernel // 2, "groups": chs}
            return convolution(chs, chs, kernel, bias=bias, **options)

        self.ghost1 = GhostModule(in_chs, mid_chs, norm, bias)
        self.conv_dw = depthwise(mid_chs) if stride > 1 else nn.Identity()
        self.bn_dw = norm(mid_chs) if stride > 1 else nn.Identity()
        self.se = SqueezeExcite(mid_chs) if se else nn.Identity()
        self.ghost2 = GhostModule(mid_chs, out_chs, norm, bias, relu=False)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_chs != out_chs:
            pointwise = convolution(in_chs, out_chs, 1, bias=bias)
            self.shortcut.extend([depthwise(in_chs), norm(in_chs), pointwise, norm(out_chs)])

    def forward(self, x: Tensor) -> Tensor:
        features = self.bn_dw(self.conv_dw(self.ghost1(x)))
        result: Tensor = self.ghost2(self.se(features)) + self.shortcut(x)
        return result
