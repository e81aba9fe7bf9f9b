"""Small networks that norm, add and activate in the ways of the libraries they are named for."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """torchvision's: one in-place relu for both places, and `out += identity`."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer1(x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class ConvBlock(nn.Module):
    """pytorchcv's: the activation is there or not."""

    def __init__(self, inputs, outputs, activation):
        super().__init__()
        self.activate = activation is not None
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        if self.activate:
            self.activ = activation

    def forward(self, x):
        x = self.bn(self.conv(x))
        return self.activ(x) if self.activate else x


class ResBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = ConvBlock(inputs, outputs, nn.ReLU(inplace=True))
        self.conv2 = ConvBlock(outputs, outputs, None)

    def forward(self, x):
        return self.conv2(self.conv1(x))


class ResUnit(nn.Module):
    """pytorchcv's: the norm lies two modules below the sum."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.resize = inputs != outputs
        self.body = ResBlock(inputs, outputs)
        if self.resize:
            self.identity_conv = ConvBlock(inputs, outputs, None)
        self.activ = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = self.identity_conv(x) if self.resize else x
        x = self.body(x)
        x = x + identity
        return self.activ(x)


class InvertedResidual(nn.Module):
    """MobileNetV2's: nothing after the sum."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(channels, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True)
            ),
            nn.Sequential(
                nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
                nn.BatchNorm2d(12),
                nn.ReLU6(inplace=True),
            ),
            nn.Conv2d(12, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return x + self.conv(x)


class Functional(nn.Module):
    """Sums, activations and dropout as functions and methods."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.bns = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(5))

    def forward(self, x):
        x = F.relu(self.bns[0](self.convs[0](x)), inplace=True)
        y = F.leaky_relu(self.bns[1](self.convs[1](x)), 0.2)
        y = F.dropout(y, 0.3, training=self.training)
        z = torch.add(y, self.bns[2](self.convs[2](y))).relu()
        z = F.dropout2d(z, 0.3, self.training)
        z = self.bns[3](self.convs[3](z)).add_(x).relu_()
        return F.silu(self.bns[4](self.convs[4](z)) + z)


class Nested(nn.Module):
    """Dropout in a part that is rewritten past its own call."""

    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, x):
        return F.relu(self.part(x) + x)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(F.dropout(x, 0.5, self.training)))


def sequence():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3),
        nn.BatchNorm2d(6),
        nn.Hardtanh(0, 6),
        nn.Conv2d(6, 3, 1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
    )


MODELS = {
    "sequence": (sequence, 2),
    "torchvision": (ResNet, 5),
    "pytorchcv": (lambda: nn.Sequential(ResUnit(3, 3), ResUnit(3, 5)), 4),
    "mobilenet": (lambda: nn.Sequential(InvertedResidual(3), InvertedResidual(3)), 6),
    "functional": (Functional, 5),
    "nested": (Nested, 1),
}
"""Name -> how to make it, and how many of its batch norms end in something else than themselves."""


def made(name):
    """In float64, with uncommon weights, and as many batch norms as can be fused."""
    build, fused = MODELS[name]
    torch.manual_seed(0)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model, fused


def images(*, seed=1, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, channels, 7, 7, generator=generator, dtype=torch.float64)


CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # sums of float64 in another order, over some steps


def assert_same(model, twin, x=None, *, steps=2):
    """Outputs, gradients and state in training, then outputs in eval."""
    x = images() if x is None else x
    models = (model, twin)
    optimizers = [torch.optim.SGD(each.parameters(), 0.05, momentum=0.9) for each in models]
    for each in models:
        each.train()
    for step in range(steps):
        inputs = [(x + step).requires_grad_() for _ in models]
        outputs = []
        for each, optimizer, given in zip(models, optimizers, inputs, strict=True):
            torch.manual_seed(step)
            outputs.append(each(given * 1))
            optimizer.zero_grad()
            outputs[-1].square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(*outputs, **CLOSE)
        torch.testing.assert_close(*(given.grad for given in inputs), **CLOSE)
    states = [each.state_dict() for each in models]
    assert list(states[0]) == list(states[1])
    torch.testing.assert_close(*states, **CLOSE)
    for each in models:
        each.eval()
    torch.testing.assert_close(model(x.clone()), twin(x.clone()), **CLOSE)


def twin_of(model):
    return copy.deepcopy(model)


def log_of(model):
    """(action, path, why), a line for each path."""
    return [(e.action, path, e.why) for e in model.spiritlevel_log for path in e.paths[:1]]


def why_of(model, path, action="left"):
    (why,) = (why for did, at, why in log_of(model) if (did, at) == (action, path))
    return why
