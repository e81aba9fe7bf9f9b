"""Internal covariate shift as Santurkar et al. 2018 define it (definition 2.1)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.lent.guard import undisturbed
from spiritlevel.probe.layers import parameter_groups, weight_layers

__all__ = ["ShiftReading", "covariate_shift"]


@dataclass(frozen=True)
class ShiftReading:
    """How far one layer's gradient G moves, to G', when the layers before it step first."""

    l2: float
    """||G - G'||: follows learning rate and gradient size, so never to be read alone."""
    cosine: float
    """cos(G, G'): 1 when the update of earlier layers does not turn the gradient."""
    relative: float
    """||G - G'|| / ||G||."""


def covariate_shift(
    model: nn.Module, x: Tensor, y: Tensor, *, lr: float, layers: Collection[str] | None = None
) -> dict[str, ShiftReading]:
    """For each weight layer but the first: G on (x, y) against G' after earlier layers stepped.

    The step is plain SGD at `lr` on the same batch, with all the parameters of a layer; the forward
    passes are in training mode, the loss is cross-entropy. `layers` names those to read, by default
    all: each costs an extra forward and backward pass. Frozen parameters stay where they are, a
    layer whose weight is frozen is left out; the model is left undisturbed. Raises KeyError for a
    layer that is not there.
    """
    weights = [(name, layer.weight) for name, layer in weight_layers(model).items()]
    unknown = set(layers or ()) - {name for name, _ in weights}
    if unknown:
        raise KeyError(*sorted(unknown))
    groups = list(parameter_groups(model).values())
    learning = [p for p in model.parameters() if p.requires_grad]
    readings: dict[str, ShiftReading] = {}
    with undisturbed(model):
        model.train()
        random_state = torch.get_rng_state()
        before = _gradients(model, x, y, learning)
        gradient_of = dict(zip(map(id, learning), before, strict=True))
        for index in range(1, len(weights)):
            name, weight = weights[index]
            with torch.no_grad():
                for parameter in filter(lambda p: p.requires_grad, groups[index - 1]):
                    parameter.sub_(gradient_of[id(parameter)], alpha=lr)
            if not weight.requires_grad or (layers is not None and name not in layers):
                continue
            torch.set_rng_state(random_state)  # the same noise, so that only the step differs
            (after,) = _gradients(model, x, y, [weight])
            readings[name] = _compare(gradient_of[id(weight)], after)
    return readings


def _gradients(
    model: nn.Module, x: Tensor, y: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(F.cross_entropy(model(x), y), parameters)


def _compare(before: Tensor, after: Tensor) -> ShiftReading:
    g, g_after = before.double().flatten(), after.double().flatten()
    l2 = (g - g_after).norm().item()
    cosine = F.cosine_similarity(g, g_after, dim=0, eps=0.0).item()
    size = g.norm().item()
    return ShiftReading(l2, cosine, l2 / size if size > 0 else float("nan"))
