"""The models by name."""

from __future__ import annotations

import fnmatch
import inspect
import operator
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from spiritlevel.errors import UsageError, did_you_mean
from spiritlevel.models.ghostnet import GhostNet
from spiritlevel.models.layers import stem_stride
from spiritlevel.models.plain import MLP, ResidualMLP, SmallResNet, SmallVGG
from spiritlevel.models.resnet import ResNet
from spiritlevel.models.vgg import VGG16
from spiritlevel.models.weights import load_weights
from spiritlevel.nn import NormSpec

__all__ = ["create_model", "list_models", "model_options"]

_MOST = 100_000_000
"""Classes and channels: more are a slip, and torch's error tells it badly."""
_RESNET56: dict[str, Any] = {
    "stem": "cifar",
    "widths": (16, 32, 64),
    "depths": (9, 9, 9),
    "kernels": (3, 3),
}
_RESNET50: dict[str, Any] = {
    "widths": (256, 512, 1024, 2048),
    "depths": (3, 4, 6, 3),
    "kernels": (1, 3, 1),
}
_PLAIN_VGG: dict[str, Any] = {"s": 1, "d": 3, "placement": "per-branch"}
_PLAIN: dict[str, Any] = {**_PLAIN_VGG, "ghost_stem": False}

_MODELS: Mapping[str, partial[Any]] = {
    "ghost_resnet50": partial(ResNet, **_RESNET50),
    "ghost_resnet56": partial(ResNet, **_RESNET56),
    "ghost_vgg16": partial(VGG16),
    "ghostnet_050": partial(GhostNet, width=0.5, version=1),
    "ghostnet_100": partial(GhostNet, width=1.0, version=1),
    "ghostnet_130": partial(GhostNet, width=1.3, version=1),
    "ghostnetv2_100": partial(GhostNet, width=1.0, version=2),
    "ghostnetv2_130": partial(GhostNet, width=1.3, version=2),
    "ghostnetv2_160": partial(GhostNet, width=1.6, version=2),
    "ghostnetv3_050": partial(GhostNet, width=0.5, version=3),
    "ghostnetv3_100": partial(GhostNet, width=1.0, version=3),
    "ghostnetv3_130": partial(GhostNet, width=1.3, version=3),
    "ghostnetv3_160": partial(GhostNet, width=1.6, version=3),
    "linear_net": partial(MLP, activation="none"),
    "mlp": partial(MLP),
    "residual_mlp": partial(ResidualMLP),
    "resnet50": partial(ResNet, **_RESNET50, **_PLAIN),
    "resnet56": partial(ResNet, **_RESNET56, **_PLAIN),
    "small_resnet": partial(SmallResNet),
    "small_vgg": partial(SmallVGG),
    "vgg16": partial(VGG16, **_PLAIN_VGG),
}


def create_model(
    name: str,
    num_classes: int = 1000,
    norm: NormSpec = "batch",
    in_chans: int = 3,
    stem: str = "imagenet",
    weights: str | os.PathLike[str] | None = None,
    new_head: bool = False,
    **options: Any,
) -> nn.Module:
    """A new model, images (N, in_chans, H, W) -> logits (N, num_classes).

    `norm` is a string of `norm_layer` or a function num_features -> layer. `stem="cifar"` spares
    GhostNets and ResNet-50 the first halving of the image, the latter the second too; the others
    have one stem. `options` are the keyword arguments of the model's class. `weights` and
    `new_head` are given to `load_weights`: a path, or `hf:OWNER/NAME`. Raises UsageError and
    MissingExtra.
    """
    if not isinstance(name, str) or name not in _MODELS:
        hint = did_you_mean(name, _MODELS)
        raise UsageError(f"got model {name!r}; wanted one of: {', '.join(_MODELS)}.{hint}")
    stem_stride(stem)  # a wrong one is wrong for every model
    try:
        num_classes, in_chans = operator.index(num_classes), operator.index(in_chans)
    except TypeError as error:
        raise UsageError(f"got {num_classes=}, {in_chans=}; wanted whole numbers") from error
    if not 1 <= num_classes <= _MOST or not 1 <= in_chans <= _MOST:
        raise UsageError(f"got {num_classes=}, {in_chans=}; wanted 1 to {_MOST:,} of each")
    rate = options.get("drop_rate", 0.0)
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise UsageError(f"got drop_rate={rate!r}; wanted a number from 0 to below 1")
    build = _MODELS[name]
    known = _options(build)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UsageError(f"got option {unknown[0]!r} for {name}; its options: {', '.join(known)}")
    if "stem" in inspect.signature(build.func).parameters and "stem" not in build.keywords:
        options["stem"] = stem
    given = {"num_classes": num_classes, "norm": norm, "in_chans": in_chans, **options}
    model: nn.Module = build(**given)
    if isinstance(norm, str):  # of which a file can say what it was
        vars(model)["made_as"] = {"name": name, **given}
    if weights is not None:
        load_weights(model, weights, new_head=new_head)
    elif new_head:
        raise UsageError(
            "got new_head=True without weights, of which the head would not be taken; wanted both. "
            "Give weights=, or leave new_head out"
        )
    return model


def _options(build: partial[Any]) -> list[str]:
    """The keyword-only arguments that the name does not settle."""
    parameters = inspect.signature(build.func).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in build.keywords]


def model_options(name: str) -> list[str]:
    """The `options` that `create_model` takes for a model of `list_models`."""
    return _options(_MODELS[name])


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern, sorted: `list_models("ghostnet*")`."""
    return sorted(fnmatch.filter(_MODELS, pattern))
