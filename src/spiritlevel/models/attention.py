"""Gates: a factor between 0 and 1 for each channel, or for each channel and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.kernels.squeeze import GATES as _GATES
from spiritlevel.models.convolved import chained
from spiritlevel.models.fused import squeeze_excite
from spiritlevel.models.layers import Layers, make_divisible

__all__ = ["GATES", "SqueezeExcite", "dfc_attention", "gated"]

GATES: Mapping[str, Callable[[Tensor], Tensor]] = {name: gate for name, (gate, _) in _GATES.items()}
"""hard: relu6(z + 3) / 6, as the published PyTorch weights; clamped: as the paper's own in TF."""


class SqueezeExcite(nn.Module):
    """x * gate(conv(relu(conv(mean of x)))): (N, C, H, W) -> the same; `gate` is of `GATES`.

    `reduced_chs` are those between the convolutions, a quarter unless given. Raises UsageError.
    """

    def __init__(self, chs: int, gate: str = "hard", reduced_chs: int = 0) -> None:
        super().__init__()
        if gate not in GATES:
            raise UsageError(f"got gate {gate!r}; wanted one of: {', '.join(GATES)}")
        self.gate = gate
        reduced_chs = reduced_chs or make_divisible(chs * 0.25)
        self.conv_reduce = nn.Conv2d(chs, reduced_chs, 1)
        self.conv_expand = nn.Conv2d(reduced_chs, chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = squeeze_excite(self, x)
        if y is not None:
            return y
        squeezed = x.mean((2, 3), keepdim=True)
        return x * GATES[self.gate](self.conv_expand(F.relu(self.conv_reduce(squeezed))))

    def extra_repr(self) -> str:
        return f"gate={self.gate}"


def dfc_attention(
    in_chs: int, out_chs: int, layers: Layers, kernel: int = 1, stride: int = 1
) -> nn.Sequential:
    """The convolutions of GhostNetV2's attention (Tang et al. 2022, section 3.2), without the gate.

    A primary convolution, then one along each row and one along each column, each with its norm:
    (N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride).
    """
    return nn.Sequential(
        layers.conv(in_chs, out_chs, kernel, stride=stride),
        layers.norm(out_chs),
        layers.depthwise(out_chs, (1, 5)),
        layers.norm(out_chs),
        layers.depthwise(out_chs, (5, 1)),
        layers.norm(out_chs),
    )


def gated(y: Tensor, x: Tensor, attention: nn.Module) -> Tensor:
    """y * sigmoid(attention(x at half its size)), each value for 2 x 2 positions of y.

    x (N, C_in, H, W), y (N, C, H', W') -> as y. A side of one pixel is not halved.
    """
    gate = torch.sigmoid(chained(attention, halved(x)))
    return y * F.interpolate(gate, size=(y.shape[-2], y.shape[-1]), mode="nearest")


@torch.fx.wrap
def halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 positions: (N, C, H, W) -> (N, C, H // 2, W // 2), at least one of each."""
    return F.avg_pool2d(x, (min(2, x.shape[-2]), min(2, x.shape[-1])))
