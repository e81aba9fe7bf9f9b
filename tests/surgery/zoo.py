"""Architectures of other people's packages, small, with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn
from zoo_check import Architecture
from zoo_inputs import declare_torchvision, images
from zoo_transformers import TRANSFORMERS

__all__ = ["PACKAGES", "architectures"]


def architectures(package: str) -> Iterator[Architecture]:
    for name, build in PACKAGES[package].items():
        yield Architecture(package, name, build)


# pytorchcv: module.function -> side of the image, options. Its package imports torchvision for one
# model that is not here, and each of its modules alone does not.
_PYTORCHCV: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet_cifar.resnet20_cifar10": (32, {}),
    "preresnet_cifar.preresnet20_cifar10": (32, {}),
    "seresnet_cifar.seresnet20_cifar10": (32, {}),
    "sepreresnet_cifar.sepreresnet20_cifar10": (32, {}),
    "diaresnet_cifar.diaresnet20_cifar10": (32, {}),
    "fractalnet_cifar.fractalnet_cifar10": (32, {}),
    "resdropresnet_cifar.resdropresnet20_cifar10": (32, {}),
    "shakedropresnet_cifar.shakedropresnet20_cifar10": (32, {}),
    "resnet.resnet10": (64, {}),
    "mobilenetv3.mobilenetv3_small_w7d20": (64, {}),
    "octresnet.octresnet10_ad2": (64, {}),
    "shufflenetv2.shufflenetv2_wd2": (64, {}),
    "cgnet.cgnet_cityscapes": (64, {}),
    "enet.enet_cityscapes": (64, {}),
    "linknet.linknet_cityscapes": (64, {}),
}


def _pytorchcv(path: str) -> tuple[nn.Module, Any]:
    size, options = _PYTORCHCV[path]
    module, name = path.split(".")
    make = getattr(importlib.import_module(f"pytorchcv.models.{module}"), name)
    classes = 10 if "cifar" not in path and "cityscapes" not in path else None
    if "cityscapes" in path:
        options = {**options, "in_size": (size, size)}
    model = make(**({} if classes is None else {"num_classes": classes}), **options)
    features = getattr(model, "features", model)
    if isinstance(getattr(features, "final_pool", None), nn.AvgPool2d):
        features.final_pool = nn.AdaptiveAvgPool2d(1)  # it is made for images of 224 x 224
    return model, images(size, batch=4 if size == 32 else 2)


# monai
def _monai(name: str, options: dict[str, Any], size: int, axes: int = 2) -> tuple[nn.Module, Any]:
    nets = importlib.import_module("monai.networks.nets")
    return getattr(nets, name)(**options), images(size, 1, 2, axes)


_UNET: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 2,
    "channels": (8, 16, 32),
    "strides": (2, 2),
}
_MONAI = {
    "UNet": partial(
        _monai,
        "UNet",
        {
            "spatial_dims": 2,
            **_UNET,
            "num_res_units": 2,
            "norm": "batch",
        },
        32,
    ),
    "UNet 3D": partial(
        _monai,
        "UNet",
        {
            "spatial_dims": 3,
            **_UNET,
            "num_res_units": 2,
            "norm": "batch",
            "act": "relu",
        },
        16,
        3,
    ),
    "AttentionUnet": partial(
        _monai,
        "AttentionUnet",
        {
            "spatial_dims": 2,
            **_UNET,
        },
        32,
    ),
    "DynUNet": partial(
        _monai,
        "DynUNet",
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [8, 16, 32],
            "norm_name": "batch",
            "res_block": True,
        },
        32,
    ),
    "SegResNet": partial(
        _monai,
        "SegResNet",
        {"spatial_dims": 2, "init_filters": 8, "norm": "batch"},
        32,
    ),
    "SegResNetDS": partial(
        _monai, "SegResNetDS", {"spatial_dims": 2, "init_filters": 8, "norm": "batch"}, 32
    ),
    "VNet": partial(_monai, "VNet", {"spatial_dims": 2, "in_channels": 1}, 32),
    "HighResNet": partial(_monai, "HighResNet", {"spatial_dims": 2, "in_channels": 1}, 16),
    "ResNet bottleneck 1D": partial(
        _monai,
        "ResNet",
        {
            "block": "bottleneck",
            "layers": [1, 1, 1, 1],
            "block_inplanes": [8, 16, 24, 32],
            "spatial_dims": 1,
            "n_input_channels": 1,
            "num_classes": 2,
        },
        128,
        1,
    ),
    "FlexibleUNet": partial(
        _monai,
        "FlexibleUNet",
        {
            "in_channels": 1,
            "out_channels": 2,
            "backbone": "resnet10",
            "spatial_dims": 2,
            "pretrained": False,
            "decoder_channels": (32, 24, 16, 16, 8),
        },
        64,
    ),
    "AutoEncoder": partial(
        _monai,
        "AutoEncoder",
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "channels": (8, 16, 32),
            "strides": (2, 2, 2),
            "num_res_units": 1,
            "norm": "batch",
        },
        32,
    ),
}


# torchvision and timm
def _torchvision(name: str) -> tuple[nn.Module, Any]:
    declare_torchvision()
    models = importlib.import_module("torchvision.models")
    return models.get_model(name, weights=None), images(64)


def _timm(name: str, size: int = 64) -> tuple[nn.Module, Any]:
    declare_torchvision()
    return importlib.import_module("timm").create_model(name, num_classes=10), images(size)


_TORCHVISION = {
    name: partial(_torchvision, name)
    for name in ("resnet18", "resnext50_32x4d", "mobilenet_v2", "shufflenet_v2_x0_5")
}
_TIMM = {
    name: partial(_timm, name)
    for name in (
        "resnet10t",
        "mobilenetv3_small_050",
        "ghostnetv3_050",
        "repvgg_a0",
        "starnet_s050",
        "lcnet_035",
        "mobilevit_xxs",
    )
}


# segmentation-models-pytorch: a decoder on an encoder of torchvision or timm
def _segmentation(decoder: str, encoder: str) -> tuple[nn.Module, Any]:
    declare_torchvision()
    models = importlib.import_module("segmentation_models_pytorch")
    return models.create_model(decoder, encoder_name=encoder, encoder_weights=None), images(64)


_SEGMENTATION = {
    f"{decoder}_{encoder}": partial(_segmentation, decoder, encoder)
    for decoder, encoder in (
        ("unet", "resnet18"),
        ("unetplusplus", "mobilenet_v2"),
        ("linknet", "resnet18"),
        ("fpn", "timm-mobilenetv3_small_075"),
        ("pspnet", "resnet18"),
        ("deeplabv3plus", "resnet18"),
    )
}

PACKAGES: dict[str, dict[str, Callable[[], tuple[nn.Module, Any]]]] = {
    "pytorchcv": {name: partial(_pytorchcv, name) for name in _PYTORCHCV},
    "transformers": TRANSFORMERS,
    "monai": _MONAI,
    "torchvision": _TORCHVISION,
    "timm": _TIMM,
    "segmentation_models_pytorch": _SEGMENTATION,
}
