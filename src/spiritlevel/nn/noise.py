"""The control of Santurkar et al. 2018, section 2.1: moments that are made to wander.

If batch normalization helps because it steadies the moments of what each layer sees, then noise
that unsteadies them again should undo the help.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from spiritlevel.nn.batch import _as_leaf, _Fused

__all__ = [
    "MomentNoise",
    "NoisyBatchNorm1d",
    "NoisyBatchNorm2d",
    "NoisyBatchNorm3d",
    "moment_noise",
]


def moment_noise(x: Tensor) -> Tensor:
    """s * x + m for x (N, C, *), drawn anew at each call from torch's global generator.

    A unit is a channel. Per unit mu ~ U(-0.5, 0.5) and sigma ~ U(1, 1.25); then per sample and
    unit, alike at all positions, m ~ U(mu - 0.1, mu + 0.1) and s ~ Normal(sigma, 0.1), where 0.1 is
    the standard deviation. The numbers are those of appendix A of Santurkar et al. 2018. The result
    has the type of x.
    """
    per_unit = (1, x.shape[1]) + (1,) * (x.dim() - 2)
    per_sample = (x.shape[0], *per_unit[1:])
    mu = x.new_empty(per_unit).uniform_(-0.5, 0.5)
    sigma = x.new_empty(per_unit).uniform_(1, 1.25)
    m = mu + x.new_empty(per_sample).uniform_(-0.1, 0.1)
    s = sigma + x.new_empty(per_sample).normal_(0, 0.1)
    return torch.addcmul(m, x, s)


class MomentNoise(nn.Module):
    """`moment_noise` of (N, C, *) while training, the identity in eval. No state."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return _as_leaf(self, x, None)
        return moment_noise(x) if self.training else x


class _Noisy(_Fused):
    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return moment_noise(y) if self.training and not isinstance(y, Proxy) else y

    def _beyond_torchs(self) -> str:
        return "noise"


class NoisyBatchNorm1d(_Noisy, nn.BatchNorm1d):
    """Batch normalization, then `moment_noise` while training. Input (N, C) or (N, C, L)."""


class NoisyBatchNorm2d(_Noisy, nn.BatchNorm2d):
    """Batch normalization, then `moment_noise` while training. Input (N, C, H, W)."""


class NoisyBatchNorm3d(_Noisy, nn.BatchNorm3d):
    """Batch normalization, then `moment_noise` while training. Input (N, C, D, H, W)."""
