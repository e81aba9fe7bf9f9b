"""How smooth the loss is along the gradient: Santurkar et al. 2018, section 3.2 and figure 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.lent.guard import undisturbed
from spiritlevel.probe.layers import weight_layers

__all__ = ["LandscapeReading", "along_gradient"]


@dataclass(frozen=True)
class LandscapeReading:
    """What a step along -g meets, over all step lengths tried; infinite where it overflows."""

    loss_range: float
    """Largest minus smallest loss among the steps, nats."""
    gradient_change: float
    """Gradient predictiveness: the largest ||g(w) - g(w - eta g)||."""
    beta: float
    """Effective beta-smoothness: the largest ||g(w) - g(w - eta g)|| / ||eta g||."""
    weight_norm2: float
    """||w||^2 of all convolution and linear weights. `beta` of a scale-invariant net falls as the
    weights grow, though the function is the same; `beta * weight_norm2` does not."""


def along_gradient(
    model: nn.Module, x: Tensor, y: Tensor, *, steps: Sequence[float]
) -> LandscapeReading:
    """Walk from w along -g by each eta in `steps`; g is the gradient of cross-entropy on (x, y).

    Training mode, one forward and backward pass per step length; frozen parameters stay where they
    are; the model is left undisturbed. Raises UsageError for a step that is not above 0.
    """
    if not steps or not all(eta > 0 for eta in steps):
        raise UsageError(f"got steps {tuple(steps)}; wanted at least one, all above 0")
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses: list[float] = []
    changes: list[float] = []
    betas: list[float] = []
    with undisturbed(model):
        model.train()
        random_state = torch.get_rng_state()
        start = [p.detach().clone() for p in parameters]
        gradient, _ = _gradient(model, x, y, parameters)
        size = _norm(gradient)
        for eta in steps:
            with torch.no_grad():
                for parameter, origin, g in zip(parameters, start, gradient, strict=True):
                    parameter.copy_(origin - eta * g)
            torch.set_rng_state(random_state)
            moved, loss = _gradient(model, x, y, parameters)
            change = _norm([a - b for a, b in zip(moved, gradient, strict=True)])
            losses.append(loss)
            changes.append(change)
            betas.append(0.0 if size == 0 else change / (eta * size))
    norm2 = sum(_square(layer.weight) for layer in weight_layers(model).values())
    span = max(losses) - min(losses) if all(map(math.isfinite, losses)) else math.inf
    return LandscapeReading(span, _worst(changes), _worst(betas), norm2)


def _gradient(
    model: nn.Module, x: Tensor, y: Tensor, parameters: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], float]:
    loss = F.cross_entropy(model(x), y)
    return torch.autograd.grad(loss, parameters), loss.item()


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(_square(t) for t in tensors))


def _square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().sum())


def _worst(values: Sequence[float]) -> float:
    """The maximum, with NaN as infinite: a step that left the floats is the worst of all."""
    return max(math.inf if math.isnan(value) else value for value in values)
