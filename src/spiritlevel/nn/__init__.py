"""Layers: the normalizations a model can be given, and the string that names each."""

from spiritlevel.nn.frozen import FrozenBatchNorm
from spiritlevel.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from spiritlevel.nn.noise import (
    MomentNoise,
    NoisyBatchNorm1d,
    NoisyBatchNorm2d,
    NoisyBatchNorm3d,
    moment_noise,
)
from spiritlevel.nn.spec import NormFactory, NormSpec, norm_layer, normalizes

__all__ = [
    "FrozenBatchNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "MomentNoise",
    "NoisyBatchNorm1d",
    "NoisyBatchNorm2d",
    "NoisyBatchNorm3d",
    "NormFactory",
    "NormSpec",
    "moment_noise",
    "norm_layer",
    "normalizes",
]
