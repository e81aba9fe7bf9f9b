"""Networks as others write them, in plain torch.nn, with activations in place.

ResNet-18 (He et al. 2016, table 1) and MobileNetV2 (Sandler et al. 2018, table 2) are what `fuse`
is for; MobileNetV3-Large (Howard et al. 2019, table 1) stands beside GhostNet. They have 11.7, 3.5
and 5.5 million parameters at 1000 classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from spiritlevel.models.layers import make_divisible, stem_stride

__all__ = ["NETS", "MobileNetV2", "MobileNetV3", "ResNet18"]


class _Block(nn.Module):
    """Two 3x3 convolutions, and the input, or its projection, added before the last ReLU."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.relu = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.downsample: nn.Module | None = None
        if stride > 1 or in_chs != out_chs:
            conv = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_chs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        y: Tensor = self.relu(out)
        return y


class ResNet18(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes). `stem="cifar"` halves no image before its blocks."""

    def __init__(
        self, num_classes: int = 1000, inplace: bool = True, stem: str = "imagenet"
    ) -> None:
        super().__init__()
        small = stem_stride(stem) == 1
        kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        blocks, in_chs = [], 64
        for out_chs in (64, 128, 256, 512):
            for index in range(2):
                stride = 2 if index == 0 and out_chs > 64 else 1
                blocks.append(_Block(in_chs, out_chs, stride, inplace))
                in_chs = out_chs
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.avgpool(self.blocks(x)).flatten(1))
        return logits


def _conv(
    in_chs: int,
    out_chs: int,
    kernel: int,
    stride: int,
    groups: int,
    inplace: bool,
    act: Callable[[bool], nn.Module] = nn.ReLU6,
) -> list[nn.Module]:
    return [
        nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_chs),
        act(inplace),
    ]


class _Added(nn.Module):
    """Layers in a row; the input is added where shapes agree."""

    def __init__(self, layers: list[nn.Module], adds: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class _Inverted(_Added):
    """Expand, depthwise 3x3, project; the input is added where shapes agree, with no ReLU after."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, expand: int, inplace: bool) -> None:
        chs = in_chs * expand
        layers = _conv(in_chs, chs, 1, 1, 1, inplace) if expand > 1 else []
        layers += _conv(chs, chs, 3, stride, chs, inplace)
        layers += [nn.Conv2d(chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs)]
        super().__init__(layers, stride == 1 and in_chs == out_chs)


# Expansion, channels, repeats, first stride.
_TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes). Without the dropout, which would need one RNG."""

    def __init__(self, num_classes: int = 1000, inplace: bool = True) -> None:
        super().__init__()
        layers, in_chs = _conv(3, 32, 3, 2, 1, inplace), 32
        for expand, chs, repeats, stride in _TABLE:
            for index in range(repeats):
                step = stride if index == 0 else 1
                layers.append(_Inverted(in_chs, chs, step, expand, inplace))
                in_chs = chs
        layers += _conv(in_chs, 1280, 1, 1, 1, inplace)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class _Gate(nn.Module):
    """Squeeze-excitation of a quarter of the channels."""

    def __init__(self, chs: int, inplace: bool) -> None:
        super().__init__()
        few = make_divisible(chs / 4, 8)
        self.few = nn.Sequential(nn.Conv2d(chs, few, 1), nn.ReLU(inplace))
        self.all = nn.Sequential(nn.Conv2d(few, chs, 1), nn.Hardsigmoid(inplace))

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.all(self.few(x.mean((2, 3), keepdim=True)))
        return x * gate


class _Gated(_Added):
    """Expand, depthwise, squeeze-excitation, project; the input is added where shapes agree."""

    def __init__(self, in_chs: int, row: tuple[int, int, int, bool, bool, int], inplace: bool):
        kernel, chs, out_chs, gated, hard, stride = row
        act: Callable[[bool], nn.Module] = nn.Hardswish if hard else nn.ReLU
        layers = _conv(in_chs, chs, 1, 1, 1, inplace, act) if chs > in_chs else []
        layers += _conv(chs, chs, kernel, stride, chs, inplace, act)
        layers += [_Gate(chs, inplace)] if gated else []
        layers += [nn.Conv2d(chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs)]
        super().__init__(layers, stride == 1 and in_chs == out_chs)


# Kernel, expanded channels, channels, squeeze-excitation, hard-swish, stride.
_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


class MobileNetV3(nn.Module):
    """Large: (N, 3, H, W) -> logits (N, num_classes), without dropout; `stem` as of GhostNet."""

    def __init__(
        self, num_classes: int = 1000, inplace: bool = True, stem: str = "imagenet"
    ) -> None:
        super().__init__()
        in_chs = 16
        layers = _conv(3, in_chs, 3, stem_stride(stem), 1, inplace, nn.Hardswish)
        for row in _LARGE:
            layers.append(_Gated(in_chs, row, inplace))
            in_chs = row[2]
        layers += _conv(in_chs, 960, 1, 1, 1, inplace, nn.Hardswish)
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(960, 1280), nn.Hardswish(inplace))
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(self.features(x).mean((2, 3))))
        return logits


NETS: dict[str, Callable[..., nn.Module]] = {"resnet18": ResNet18, "mobilenet_v2": MobileNetV2}
"""What `fuse` is measured on: name -> a function of num_classes and inplace."""
