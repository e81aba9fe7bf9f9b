"""Random small models: mixed layers, shared modules, odd shapes, containers, strange attributes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import spiritlevel as sl
from spiritlevel.nn import FrozenBatchNorm, norm_layer

__all__ = ["Broken", "batches", "model"]


class Residual(nn.Module):
    def __init__(self, *body: nn.Module):
        super().__init__()
        self.body = nn.ModuleList(body)

    def forward(self, x):
        y = x
        for module in self.body:
            y = module(y)
        return x + y if y.shape == x.shape else y


class Branches(nn.Module):
    """Through one of them, by the values; the last is never run."""

    def __init__(self, one: nn.Module, other: nn.Module):
        super().__init__()
        self.branches = nn.ModuleDict({"a": one, "b": other, "never": copy.deepcopy(one)})

    def forward(self, x):
        return self.branches["a" if x.sum() > 0 else "b"](x)


class Counts(nn.Module):
    """Its forward writes an attribute and a buffer, and draws numbers."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.seen: list[Any] = []
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen.append(self.calls)
        self.total = self.total + 1
        return x * (1 + 0.1 * random.random()) + 0.01 * torch.randn(())


class Strange(nn.Module):
    """Holds itself, its parts twice, and names that other modules use for tensors."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part
        self.hidden = [part, {"again": part}]
        self.around = [self.hidden]
        self.hidden.append(self.around)
        self.weight = None
        self.running_mean = "none"
        self.momentum = self.eps = "strange"
        self.register_buffer("nothing", None)
        self.register_parameter("neither", None)

    @property
    def num_batches_tracked(self):
        raise RuntimeError("no such thing")

    def forward(self, x):
        return self.part(x)


class MyBatchNorm(nn.Module):
    """Named for what it is not: no statistics, no parameters."""

    running_var = 3

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class KeepsTraining(nn.Module):
    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def train(self, mode=True):
        super().train(True)
        return self

    def forward(self, x):
        return self.part(x)


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken on purpose")


Layer = Callable[[random.Random, int], nn.Module]


def _batch_norm(rng: random.Random, channels: int, axes: int) -> nn.Module:
    kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
    norm = kind(
        channels,
        eps=rng.choice([1e-5, 1e-3, 1.0]),
        momentum=rng.choice([0.1, 0.1, None, 0.0, 1.0, 0.99]),
        affine=rng.random() < 0.8,
        track_running_stats=rng.random() < 0.8,
    )
    harm = rng.random()
    if norm.running_var is None or harm > 0.3:
        return norm
    if harm < 0.05:
        norm.running_var[0] = float("nan")
    elif harm < 0.1:
        norm.running_var[0] = -1.0
    elif harm < 0.15:
        norm.num_batches_tracked = None
    elif harm < 0.2:
        norm.num_batches_tracked = torch.tensor(1.5)
    elif harm < 0.25:
        norm.requires_grad_(False)
    else:
        norm.eval()
    return norm


def _other_norm(rng: random.Random, channels: int, axes: int) -> nn.Module:
    names = ["ghost:2", "renorm:warmup=0", "frozen", "none"]
    names += ["instance"] if axes > 1 else []
    instance = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 1]
    return rng.choice(
        [
            lambda: norm_layer(rng.choice(names), dim=axes)(channels),
            lambda: instance(channels, affine=True, track_running_stats=True),
            lambda: nn.GroupNorm(1, channels),
            lambda: FrozenBatchNorm(channels),
            MyBatchNorm,
        ]
    )()


def _weights(rng: random.Random, channels: int, to: int, axes: int) -> nn.Module:
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    made = kind(channels, to, rng.choice([1, 3]), padding="same", bias=rng.random() < 0.5)
    wrap = rng.random()
    if wrap < 0.1:
        return parametrizations.weight_norm(made)
    return parametrizations.spectral_norm(made) if wrap < 0.15 else made


def _plain(rng: random.Random) -> nn.Module:
    kinds = [nn.ReLU, nn.Identity, nn.Dropout, nn.Tanh, nn.Sequential, Counts]
    return rng.choice(kinds)()


def _step(rng: random.Random, channels: int, to: int, axes: int, depth: int) -> nn.Module:
    def inner() -> nn.Module:
        return _step(rng, channels, channels, axes, depth - 1)

    if to != channels or depth < 1 or rng.random() < 0.6:
        chosen = [_weights(rng, channels, to, axes)]
        chosen += [_batch_norm(rng, to, axes)] * (rng.random() < 0.6)
        chosen += [_other_norm(rng, to, axes)] * (rng.random() < 0.3)
        chosen += [_plain(rng)] * (rng.random() < 0.7)
        return nn.Sequential(*chosen)
    return rng.choice(
        [
            lambda: Residual(inner(), inner()),
            lambda: Branches(inner(), inner()),
            lambda: Strange(inner()),
            lambda: KeepsTraining(inner()),
            lambda: nn.Sequential(*[inner()] * 2),  # the same module twice
        ]
    )()


def model(seed: int) -> tuple[nn.Module, int, int]:
    """The model, its channels, and after how many axes (1 to 3) its data has them."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    axes, channels = rng.choice([1, 2, 2, 2, 3]), rng.choice([1, 2, 3, 7])
    widths = [channels, *(rng.choice([1, 2, 5]) for _ in range(rng.randint(1, 4)))]
    steps = [_step(rng, a, b, axes, 2) for a, b in pairwise(widths)]
    shared = rng.choice(steps)
    if isinstance(shared, Residual | Branches | Strange):
        steps.insert(steps.index(shared), shared)
    made = nn.Sequential(*steps)
    if rng.random() < 0.5:
        made.append(nn.Flatten()).append(nn.LazyLinear(2))
        made(torch.randn(2, channels, *[3] * axes))
    made.train(rng.random() < 0.6)
    if rng.random() < 0.2:
        made = sl.fuse(made)
    if rng.random() < 0.2:
        for parameter in made.parameters():
            parameter.grad = torch.randn_like(parameter)
    return made, channels, axes


def batches(seed: int, channels: int, axes: int) -> list[Any]:
    """One to four of 1 to 5 samples, with targets or not."""
    rng = random.Random(seed)
    made = []
    with_targets = rng.random() < 0.5
    for _ in range(rng.randint(1, 4)):
        n = rng.randint(1, 5)
        x: Tensor = torch.randn(n, channels, *[3] * axes)
        made.append((x, torch.randint(2, (n,))) if with_targets else x)
    return made
