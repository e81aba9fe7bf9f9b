"""Small nets, data, statistics from all data at once, and all that `recalibrate` must not move."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def net(seed: int = 0) -> nn.Sequential:
    """Batch norms at 1 and 5, an in-place ReLU behind each, dropout between; float64, in eval."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return _net()


def _net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Dropout(0.4),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    for norm in (model[1], model[5]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(1000)
    return model.eval()


def images(count: int = 17) -> torch.Tensor:
    """Each sample brighter than the one before, so that no two batches are alike."""
    made = torch.randn(count, 2, 7, 7, generator=torch.Generator().manual_seed(1)).double()
    return made * 3 + torch.arange(count)[:, None, None, None] / 4


def pairs(sizes: tuple[int, ...] = (7, 4, 6)):
    x = images(sum(sizes))
    return list(zip(x.split(sizes), (torch.arange(len(x)) % 3).split(sizes), strict=True))


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of each channel, all values at once."""
    flat = x.detach().double().transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1)


def normalized(norm: nn.Module, x: torch.Tensor, given=None) -> torch.Tensor:
    mean, var = (None, None) if given is None else given
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, given is None, eps=norm.eps)


def held(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return norm.running_mean, norm.running_var


def assert_statistics(norm, expected, rtol=1e-12):
    for got, wanted in zip(held(norm), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=rtol, atol=rtol)


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def everything(model: nn.Module, *, but_statistics: bool = False, versions: bool = True):
    """By name: all that must not move, hooks and random states included.

    `versions`: nor may it be written to, even where it is then put back.
    """
    found: dict[str, object] = {
        name: (id(t), t._version if versions else 0, t.tolist())
        for name, t in model.state_dict(keep_vars=True).items()
        if not (but_statistics and name.endswith(STATISTICS))
    }
    for name, module in model.named_modules():
        own = [key for key in vars(module) if key != "spiritlevel_log"]
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        momentum = getattr(module, "momentum", None)
        found[f"of {name}"] = module.training, hooks, own, momentum
    for name, p in model.named_parameters():
        grad = None if p.grad is None else (id(p.grad), p.grad.tolist())
        found[f"grad of {name}"] = p.requires_grad, grad
    found["torch"] = torch.get_rng_state().tolist()
    found["python"], found["numpy"] = random.getstate(), str(np.random.get_state())
    return found
