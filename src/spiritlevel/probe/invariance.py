"""What batch norm decouples exactly: the scale of a weight (Ioffe & Szegedy 2015, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.lent.guard import undisturbed
from spiritlevel.probe.layers import weight_layers

__all__ = [
    "Loss",
    "ScalingReading",
    "effective_rate",
    "gradient_cosine",
    "scaling_errors",
    "weight_scaling",
]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(weight (K, D), input (N, D)) -> scalar loss."""


def scaling_errors(loss: Loss, weight: Tensor, u: Tensor, *, scale: float) -> dict[str, float]:
    """Relative errors of the three identities for W -> aW, with a = `scale`, in the dtype given.

    "loss": L(aW, u) = L(W, u); "input": dL/du unchanged; "weight": a dL/d(aW) = dL/dW. Zero to
    rounding behind a batch norm with eps = 0; about eps / (a^2 var) with eps.
    """
    base, base_w, base_u = _value_and_gradients(loss, weight, u)
    scaled, scaled_w, scaled_u = _value_and_gradients(loss, weight * scale, u)
    return {
        "loss": _relative(scaled, base),
        "input": _relative(scaled_u, base_u),
        "weight": _relative(scaled_w * scale, base_w),
    }


def gradient_cosine(loss: Loss, weight: Tensor, u: Tensor) -> float:
    """The mean over units of |cos(w, dL/dw)|: zero where the scale of w does not matter.

    A unit without a gradient, such as one whose ReLU is always off, has no angle and is left out.
    """
    _, gradient, _ = _value_and_gradients(loss, weight, u)
    return _mean_cosine(weight.detach(), gradient)


def effective_rate(lr: float, weight: Tensor) -> float:
    """lr / ||w||^2: how fast a scale-invariant weight's direction turns (van Laarhoven 2017)."""
    return lr / float(weight.detach().double().square().sum())


@dataclass(frozen=True)
class ScalingReading:
    """What becomes of a network when the weight of one of its layers is multiplied by a."""

    errors: tuple[float, ...]
    """By a: the larger relative error of logits(aW) = logits(W) and of a dL/d(aW) = dL/dW."""
    cosine: float
    """The mean over units of |cos(w, dL/dw)|, as `gradient_cosine`."""


def weight_scaling(
    model: nn.Module, x: Tensor, y: Tensor, layer: str, *, scales: Sequence[float]
) -> ScalingReading:
    """Multiply the weight of `layer` by each of `scales`, in training mode, on cross-entropy.

    In the dtype of model and x; the model is left undisturbed. Raises KeyError for a layer that is
    not there.
    """
    weight = weight_layers(model)[layer].weight

    def read() -> tuple[Tensor, Tensor]:
        logits = model(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), [weight])
        return logits.detach(), gradient

    errors = []
    with undisturbed(model):
        model.train()
        random_state = torch.get_rng_state()
        start = weight.detach().clone()
        logits, gradient = read()
        for a in scales:
            torch.set_rng_state(random_state)
            with torch.no_grad():
                weight.copy_(start * a)
            scaled, scaled_gradient = read()
            pair = _relative(scaled, logits), _relative(scaled_gradient * a, gradient)
            errors.append(float(np.max(pair)))  # NaN if one is
    return ScalingReading(tuple(errors), _mean_cosine(start.flatten(1), gradient.flatten(1)))


def _mean_cosine(weight: Tensor, gradient: Tensor) -> float:
    """Mean |cos| over the rows that have a gradient."""
    cosine = F.cosine_similarity(weight, gradient, dim=1, eps=0.0).abs()
    return cosine[gradient.norm(dim=1) != 0].mean().item()


def _value_and_gradients(loss: Loss, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    w, v = (t.detach().clone().requires_grad_() for t in (weight, u))
    value = loss(w, v)
    gradient_w, gradient_v = torch.autograd.grad(value, [w, v])
    return value.detach(), gradient_w, gradient_v


def _relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())
