"""The ResNets and VGGs, plain and of Ghost modules, against their arithmetic written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.models import create_model

State = dict[str, Tensor]


def norm(s: State, name: str, x: Tensor) -> Tensor:
    moments = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, *moments, s[f"{name}.weight"], s[f"{name}.bias"])


def conv(s: State, name: str, bn: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return norm(s, bn, F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups))


def ghost(s: State, name: str, x: Tensor, stride: int = 1, relu: bool = True) -> Tensor:
    act = F.relu if relu else (lambda t: t)
    first = act(conv(s, f"{name}.primary_conv.0", f"{name}.primary_conv.1", x, stride))
    cheap = conv(s, f"{name}.cheap_operation.0", f"{name}.cheap_operation.1", first)
    return torch.cat([first, act(cheap)], 1)


def resnet56(s: State, x: Tensor, ghosts: bool) -> Tensor:
    x = F.relu(conv(s, "conv1", "bn1", x))
    for i, width in enumerate((16, 32, 64)):
        for j in range(9):
            p, stride = f"layer{i + 1}.{j}", 2 if i and not j else 1
            shortcut = x
            if stride == 2:
                before = (width - x.shape[1]) // 2
                shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, before))
            if ghosts:
                y = ghost(s, f"{p}.conv2", ghost(s, f"{p}.conv1", x, stride), relu=False)
            else:
                y = F.relu(conv(s, f"{p}.conv1", f"{p}.bn1", x, stride))
                y = conv(s, f"{p}.conv2", f"{p}.bn2", y)
            x = F.relu(y + shortcut)
    return F.linear(x.mean((2, 3)), s["fc.weight"], s["fc.bias"])


def resnet50(s: State, x: Tensor, ghosts: bool) -> Tensor:
    x = F.max_pool2d(F.relu(conv(s, "conv1", "bn1", x, 2)), 3, 2, 1)
    for i, depth in enumerate((3, 4, 6, 3)):
        for j in range(depth):
            p, stride = f"layer{i + 1}.{j}", 2 if i and not j else 1
            if ghosts:
                y = ghost(s, f"{p}.conv2", ghost(s, f"{p}.conv1", x), stride)
                y = ghost(s, f"{p}.conv3", y, relu=False)
                shortcut = x if j else ghost(s, f"{p}.downsample", x, stride, relu=False)
            else:
                y = F.relu(conv(s, f"{p}.conv1", f"{p}.bn1", x))
                y = F.relu(conv(s, f"{p}.conv2", f"{p}.bn2", y, stride))
                y = conv(s, f"{p}.conv3", f"{p}.bn3", y)
                shortcut = x
                if not j:
                    shortcut = conv(s, f"{p}.downsample.0", f"{p}.downsample.1", x, stride)
            x = F.relu(y + shortcut)
    return F.linear(x.mean((2, 3)), s["fc.weight"], s["fc.bias"])


def vgg16(s: State, x: Tensor, ghosts: bool) -> Tensor:
    for i, widths in enumerate(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)):
        x = F.max_pool2d(x, 2) if i else x
        for j, width in enumerate(widths, bool(i)):
            p = f"features.{i}.{j}"
            if ghosts and (i or j):
                x = ghost(s, p, x)[:, :width]
            else:
                x = F.relu(conv(s, f"{p}.conv", f"{p}.bn1", x))
    return F.linear(x.mean((2, 3)), s["classifier.weight"], s["classifier.bias"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "oracle", "options"),
    [
        ("resnet56", resnet56, {}),
        ("ghost_resnet56", resnet56, {}),
        ("ghost_resnet56", resnet56, {"d": 1}),
        ("vgg16", vgg16, {}),
        ("ghost_vgg16", vgg16, {"s": 3, "d": 5}),
        ("resnet50", resnet50, {}),
        ("ghost_resnet50", resnet50, {"s": 4}),
    ],
)
def test_its_arithmetic(name, oracle, options):
    torch.manual_seed(0)
    model = create_model(name, 5, **options).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    x = torch.randn(2, 3, 45, 38, dtype=torch.float64)
    expected = oracle(model.state_dict(), x, name.startswith("ghost"))
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["ghostnet_050", "ghost_resnet56", "resnet50", "vgg16"])
def test_options_reach_the_layers(name):
    with torch.device("meta"):
        model = create_model(name, 5, act="silu", drop_rate=0.3, checkpoint=True)
    kinds = {type(module) for module in model.modules()}
    assert nn.SiLU in kinds
    assert nn.ReLU not in kinds
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3]
    assert model.checkpointing is True
