"""Layers: the normalizations a model can be given, and the string that names each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spiritlevel.nn import as_timm, batch
from spiritlevel.nn.batch import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from spiritlevel.nn.frozen import FrozenBatchNorm, FrozenBatchNormAct
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

if TYPE_CHECKING:
    from spiritlevel.nn.batch import BatchNormAct2d

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
    "FrozenBatchNormAct",
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


def __getattr__(name: str) -> Any:
    """BatchNormAct2d, which timm, once it is imported, has to know before it is handed over."""
    if name != "BatchNormAct2d":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    as_timm.introduced(batch.BatchNormAct2d)
    return batch.BatchNormAct2d


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
