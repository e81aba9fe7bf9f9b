"""What batch norm decouples exactly: the scale of a weight (Ioffe & Szegedy 2015, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["effective_rate", "gradient_cosine", "scaling_errors"]

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
    cosine = F.cosine_similarity(weight.detach(), gradient, dim=1, eps=0.0).abs()
    return cosine[gradient.norm(dim=1) != 0].mean().item()


def effective_rate(lr: float, weight: Tensor) -> float:
    """lr / ||w||^2: how fast a scale-invariant weight's direction turns (van Laarhoven 2017)."""
    return lr / float(weight.detach().double().square().sum())


def _value_and_gradients(loss: Loss, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    w, v = (t.detach().clone().requires_grad_() for t in (weight, u))
    value = loss(w, v)
    gradient_w, gradient_v = torch.autograd.grad(value, [w, v])
    return value.detach(), gradient_w, gradient_v


def _relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())
