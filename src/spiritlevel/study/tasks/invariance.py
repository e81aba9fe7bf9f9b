"""What BN decouples exactly: a layer from the scale of its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.data import Images
from spiritlevel.kernels.reference import batch_norm
from spiritlevel.probe import effective_rate, gradient_cosine, scaling_errors
from spiritlevel.probe.invariance import Loss
from spiritlevel.study.tasks.common import feed, seeded

__all__ = ["invariance"]

EPSILONS = (0.0, 1e-5, 1e-3)
SCALES = (0.001, 0.01, 0.1, 10.0, 1000.0)
UNITS, STEPS, LR, STRETCH = 30, 50, 0.1, 10.0


def invariance(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Linear, BN, ReLU, linear on real images, in float64: BN(aWu) = BN(Wu), and what follows.

    Settings: seed, batch_size, size.
    """
    data = feed(images, settings)
    u = data.train_x[: settings["batch_size"]].flatten(1).double()
    y = data.train_y[: settings["batch_size"]]
    seeded(settings["seed"])
    weight = torch.randn(UNITS, u.shape[1], dtype=torch.float64) * math.sqrt(2 / u.shape[1])
    head = torch.randn(data.num_classes, UNITS, dtype=torch.float64) * math.sqrt(2 / UNITS)
    exact, plain = _loss(head, y, 0.0), _loss(head, y, None)
    return {
        "scales": list(SCALES),
        "errors": {str(eps): _worst(_loss(head, y, eps), weight, u) for eps in EPSILONS},
        "errors_without": _worst(plain, weight, u),
        "errors_float32": _worst(_loss(head.float(), y, 0.0), weight.float(), u.float()),
        "cosine": gradient_cosine(exact, weight, u),
        "cosine_eps": gradient_cosine(_loss(head, y, 1e-5), weight, u),
        "cosine_without": gradient_cosine(plain, weight, u),
        "trajectories": _trajectories(exact, weight, u),
        "trajectories_without": _trajectories(plain, weight, u),
    }


def _loss(head: Tensor, y: Tensor, eps: float | None) -> Loss:
    def loss(weight: Tensor, u: Tensor) -> Tensor:
        z = u @ weight.T
        h = z if eps is None else batch_norm(z, eps=eps)
        return F.cross_entropy(h.relu() @ head.T, y)

    return loss


def _worst(loss: Loss, weight: Tensor, u: Tensor) -> list[float]:
    """By scale a: the largest relative error of the three identities."""
    # NaN if one is: np.max, since the builtin may hide it.
    return [float(np.max([*scaling_errors(loss, weight, u, scale=a).values()])) for a in SCALES]


def _trajectories(loss: Loss, weight: Tensor, u: Tensor) -> dict[str, Any]:
    """SGD from W at lr, from 10 W at 100 lr (the same lr / ||W||^2), and from 10 W at lr."""
    start, grown, squared_steps = _descend(loss, weight, u, LR)
    same_rate, *_ = _descend(loss, weight * STRETCH, u, LR * STRETCH**2)
    same_lr, *_ = _descend(loss, weight * STRETCH, u, LR)
    return {
        "loss": start,
        "loss_same_effective_rate": same_rate,
        "loss_same_rate": same_lr,
        "effective_rate": effective_rate(LR, weight),
        "worst_difference": float(np.abs(np.subtract(start, same_rate)).max()),
        # <W, g> = 0 means ||W||^2 grows by exactly the squared length of each step.
        "norm_growth": grown,
        "sum_of_squared_steps": squared_steps,
    }


def _descend(loss: Loss, start: Tensor, u: Tensor, lr: float) -> tuple[list[float], float, float]:
    """The losses, by how much ||W||^2 has grown, and the sum of the steps' squared lengths."""
    weight = start.clone().requires_grad_()
    losses: list[float] = []
    total = 0.0
    for _ in range(STEPS):
        value = loss(weight, u)
        losses.append(value.item())
        (gradient,) = torch.autograd.grad(value, [weight])
        with torch.no_grad():
            weight -= lr * gradient
        total += float((lr * gradient).square().sum())
    before, after = (float(w.detach().square().sum()) for w in (start, weight))
    return losses, after - before, total
