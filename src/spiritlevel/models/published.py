"""What has been published of the models: accuracies, and the sizes that papers give.

GhostNet        Han et al. 2020, arXiv 1911.11907, whose tables also have VGG-16, ResNet-56,
                ResNet-50 and what becomes of them with Ghost modules
GhostNetV2      Tang et al. 2022, arXiv 2211.12905
GhostNetV3      Liu et al. 2024, arXiv 2404.11202
timm            its own evaluation of the published weights, bicubic, at 224 px

All are of networks with batch normalization. What nobody has published is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["CIFAR10", "IMAGENET", "PUBLISHED", "Accuracy", "Data", "Published", "published"]


@dataclass(frozen=True)
class Data:
    """Images that accuracies are of: their height and width as fed, and how many classes."""

    name: str
    image_size: int
    num_classes: int


IMAGENET = Data("ImageNet", 224, 1000)
CIFAR10 = Data("CIFAR-10", 32, 10)


@dataclass(frozen=True)
class Accuracy:
    """In per cent, and where it stands."""

    source: str
    top1: float
    top5: float | None = None


@dataclass(frozen=True)
class Published:
    """One network of a paper: what `create_model` makes it of, and what is said of it."""

    model: str
    data: Data
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `create_model`."""
    deployed: bool = False
    """It is that model after `deploy`."""
    parameters: float | None = None
    """Millions, by the paper."""
    multiply_adds: float | None = None
    """Millions, by the paper, which calls them FLOPs."""
    accuracies: tuple[Accuracy, ...] = ()
    """The paper's before others'."""
    apart: str = ""
    """The key under `models.apart` of the sentence why our counts are not the paper's."""


def published(model: str) -> list[Published]:
    """The networks that are the model of this name, perhaps none."""
    return [each for each in PUBLISHED if each.model == model]


def _of_ghostnet(table: int, top1: float, top5: float | None = None) -> Accuracy:
    return Accuracy(f"GhostNet, table {table}", top1, top5)


def _imagenet(model: str, sizes: tuple[float | None, float], *accuracies: Accuracy) -> Published:
    parameters, multiply_adds = sizes
    return Published(
        model,
        IMAGENET,
        parameters=parameters,
        multiply_adds=multiply_adds,
        accuracies=accuracies,
    )


def _v2(width: str, multiply_adds: float, paper: float, timm: float) -> Published:
    found = Accuracy("GhostNetV2", paper), Accuracy("timm", timm)
    return _imagenet(f"ghostnetv2_{width}", (None, multiply_adds), *found)


def _v3(
    width: str, multiply_adds: float | None = None, *accuracies: Accuracy
) -> tuple[Published, Published]:
    """As it trains and as it is deployed, whose counts the paper gives; the accuracy is both's."""
    deployed = Published(
        f"ghostnetv3_{width}",
        IMAGENET,
        deployed=True,
        multiply_adds=multiply_adds,
        accuracies=accuracies,
    )
    apart = "" if multiply_adds is None else "deployed"
    return replace(deployed, deployed=False, apart=apart), deployed


def _vgg(s: int, d: int, sizes: tuple[float, float], top1: float, table: int) -> Published:
    return Published(
        "ghost_vgg16" if s > 1 else "vgg16",
        CIFAR10,
        {"s": s, "d": d} if s > 1 else {},
        parameters=sizes[0],
        multiply_adds=sizes[1],
        accuracies=(_of_ghostnet(table, top1),),
        apart="ghost_linear" if s > 1 else "linear",
    )


def _ghost_resnet50(s: int, sizes: tuple[float, float], accuracy: Accuracy) -> Published:
    made = _imagenet("ghost_resnet50", sizes, accuracy)
    return replace(made, options={"s": s}, apart="whole")


_GHOST_RESNET56 = Published(
    "ghost_resnet56",
    CIFAR10,
    {"s": 2, "d": 1},
    parameters=0.43,
    multiply_adds=63,
    accuracies=(_of_ghostnet(5, 92.7),),
)

PUBLISHED: tuple[Published, ...] = (
    _imagenet("ghostnet_050", (2.6, 42), _of_ghostnet(7, 66.2, 86.6)),
    _imagenet(
        "ghostnet_100", (5.2, 141), _of_ghostnet(7, 73.9, 91.4), Accuracy("timm", 73.958, 91.542)
    ),
    _imagenet("ghostnet_130", (7.3, 226), _of_ghostnet(7, 75.7, 92.7)),
    _v2("100", 167, 75.3, 75.186),
    _v2("130", 269, 76.9, 76.746),
    _v2("160", 399, 77.8, 77.836),
    *_v3("050"),
    *_v3("100", None, Accuracy("timm", 76.936)),
    *_v3("130", 269, Accuracy("GhostNetV3", 79.1)),
    *_v3("160"),
    _vgg(1, 0, (15, 313), 93.6, table=5),
    _vgg(2, 3, (7.7, 158), 93.7, table=5),
    _vgg(2, 1, (7.6, 157), 93.5, table=3),
    _vgg(2, 5, (7.7, 160), 93.4, table=3),
    _vgg(2, 7, (7.7, 163), 93.1, table=3),
    _vgg(3, 3, (5.2, 107), 93.4, table=4),
    _vgg(4, 3, (4.0, 80), 93.0, table=4),
    _vgg(5, 3, (3.3, 65), 92.9, table=4),
    Published(
        "resnet56",
        CIFAR10,
        parameters=0.85,
        multiply_adds=125,
        accuracies=(_of_ghostnet(5, 93.0),),
    ),
    # What create_model makes by itself: the paper's sizes beside it, but not the accuracy, as they
    # are those of d = 1.
    replace(_GHOST_RESNET56, options={"s": 2, "d": 3}, accuracies=(), apart="d1"),
    _GHOST_RESNET56,
    _imagenet("resnet50", (25.6, 4100), _of_ghostnet(6, 75.3, 92.2)),
    _ghost_resnet50(2, (13, 2200), _of_ghostnet(6, 75.0, 92.3)),
    _ghost_resnet50(4, (6.5, 1200), _of_ghostnet(6, 74.1, 91.9)),
)
