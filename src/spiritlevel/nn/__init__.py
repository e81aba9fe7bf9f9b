"""Layers: the normalizations a model can be given, and the string that names each."""

from spiritlevel.nn.batch import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from spiritlevel.nn.frozen import FrozenBatchNorm
from spiritlevel.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from spiritlevel.nn.noise import (
    MomentNoise,
    NoisyBatchNorm1d,
    NoisyBatchNorm2d,
    NoisyBatchNorm3d,
    moment_noise,
)
from spiritlevel.nn.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from spiritlevel.nn.spec import NormFactory, NormSpec, norm_layer, normalizes
from spiritlevel.nn.sync import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "FrozenBatchNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "MomentNoise",
    "NoisyBatchNorm1d",
    "NoisyBatchNorm2d",
    "NoisyBatchNorm3d",
    "NormFactory",
    "NormSpec",
    "SyncBatchNorm",
    "moment_noise",
    "norm_layer",
    "normalizes",
]
