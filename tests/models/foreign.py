"""Networks whose attribute names, and arithmetic, are those of code that others published.

Written anew for these tests, after the names in those files' state dicts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Kernel, expansion, channels, squeeze-excitation, stride: Han et al. 2020, table 1.
ROWS = (
    (3, 16, 16, 0, 1),
    (3, 48, 24, 0, 2),
    (3, 72, 24, 0, 1),
    (5, 72, 40, 1, 2),
    (5, 120, 40, 1, 1),
    (3, 240, 80, 0, 2),
    (3, 200, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 480, 112, 1, 1),
    (3, 672, 112, 1, 1),
    (5, 672, 160, 1, 2),
    (5, 960, 160, 0, 1),
    (5, 960, 160, 1, 1),
    (5, 960, 160, 0, 1),
    (5, 960, 160, 1, 1),
)


def unit(cin: int, cout: int, k: int, stride: int = 1, groups: int = 1, relu: bool = True):
    conv = nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU() if relu else nn.Identity())


class Ghost(nn.Module):
    def __init__(self, cin: int, cout: int, relu: bool) -> None:
        super().__init__()
        half = cout // 2
        self.primary_conv = unit(cin, half, 1, relu=relu)
        self.cheap_operation = unit(half, half, 3, groups=half, relu=relu)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary_conv(x)
        return torch.cat((x, self.cheap_operation(x)), 1)


class LinearGate(nn.Module):
    def __init__(self, chs: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(chs, chs // 4), nn.ReLU(), nn.Linear(chs // 4, chs))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3))).clamp(0, 1)[..., None, None]


class Bottleneck(nn.Module):
    def __init__(self, cin: int, mid: int, cout: int, k: int, stride: int, se: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Ghost(cin, mid, True),
            unit(mid, mid, k, stride, mid, False) if stride == 2 else nn.Identity(),
            LinearGate(mid) if se else nn.Identity(),
            Ghost(mid, cout, False),
        )
        self.shortcut = nn.Sequential()
        if stride == 2 or cin != cout:
            self.shortcut = nn.Sequential(
                unit(cin, cin, 3, stride, cin),
                nn.Conv2d(cin, cout, 1, bias=False),
                nn.BatchNorm2d(cout),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x)


class DLi14(nn.Module):
    """GhostNet 1.0x as d-li14/ghostnet.pytorch has it, without its dropout."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers, chs = [unit(3, 16, 3, 2)], 16
        for k, mid, cout, se, stride in ROWS:
            layers.append(Bottleneck(chs, mid, cout, k, stride, se))
            chs = cout
        self.features = nn.Sequential(*layers)
        self.squeeze = nn.Sequential(*unit(chs, 960, 1), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(
            nn.Linear(960, 1280, bias=False),
            nn.BatchNorm1d(1280),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(1280, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.squeeze(self.features(x)).flatten(1))


class BareGhost(nn.Module):
    """Without norms: they follow the module."""

    def __init__(self, cin: int, cout: int, k: int, stride: int = 1) -> None:
        super().__init__()
        half = cout // 2
        self.primary_conv = nn.Conv2d(cin, half, k, stride, k // 2, bias=False)
        self.cheap_operations = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary_conv(x)
        return torch.cat((x, self.cheap_operations(x)), 1)


class Basic(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = BareGhost(cin, cout, 3, stride), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = BareGhost(cout, cout, 3), nn.BatchNorm2d(cout)
        self.shortcut = nn.Sequential()
        if stride == 2 or cin != cout:
            self.shortcut = nn.Sequential(BareGhost(cin, cout, 1, stride), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class LateNormResNet56(nn.Module):
    """Ghost-ResNet-56 for CIFAR as bvn1904/ghostnet has it: one norm after each concatenation."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = BareGhost(3, 16, 3), nn.BatchNorm2d(16)
        chs = 16
        for i, width in enumerate((16, 32, 64)):
            units = []
            for j in range(9):
                units.append(Basic(chs, width, 2 if i and not j else 1))
                chs = width
            self.add_module(f"layer{i + 1}", nn.Sequential(*units))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
