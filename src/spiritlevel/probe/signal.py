"""The scale of activations and gradients by depth: what vanishes and what explodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.lent.guard import undisturbed
from spiritlevel.probe.layers import weight_layers

__all__ = ["SignalReading", "growth_per_layer", "signal_by_depth"]


@dataclass(frozen=True)
class SignalReading:
    """One forward and backward pass, layer by layer in the order of the forward pass."""

    layers: tuple[str, ...]
    activation_std: tuple[float, ...]
    """Standard deviation of each layer's input over batch and units (biased, float64)."""
    weight_gradient: tuple[float, ...]
    """||dL/dW|| of each layer."""
    input_gradient: tuple[float, ...]
    """||dL/dx|| with respect to each layer's input; NaN for the first, whose input is the image."""
    loss: float


def signal_by_depth(model: nn.Module, x: Tensor, y: Tensor) -> SignalReading:
    """Read activation and gradient scale at every weight layer, in training mode, on cross-entropy.

    The model is left undisturbed. A layer that is called twice is read at its first call.
    """
    inputs: dict[str, Tensor] = {}
    modules = weight_layers(model)

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs.setdefault(name, arguments[0])

        return hook

    with undisturbed(model), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(keep(name)).remove)
        model.train()
        loss = F.cross_entropy(model(x), y)
        weights = [modules[name].weight for name in inputs]
        inner = [tensor for tensor in inputs.values() if tensor.requires_grad]
        gradients = torch.autograd.grad(loss, [*weights, *inner])
    norms = [g.double().norm().item() for g in gradients]
    by_input = iter(norms[len(weights) :])
    return SignalReading(
        tuple(inputs),
        tuple(t.detach().double().std(correction=0).item() for t in inputs.values()),
        tuple(norms[: len(weights)]),
        tuple(next(by_input) if t.requires_grad else math.nan for t in inputs.values()),
        loss.item(),
    )


def growth_per_layer(values: Sequence[float], *, skip: int = 2) -> float | None:
    """The factor by which `values` grow from one layer to the next: exp of the log-linear slope.

    The first `skip` layers, which adapt to the image, and the last, the classifier's, are left out.
    None where a value is zero (underflow), negative or not finite, or fewer than two are left.
    """
    middle = [float(v) for v in values[skip:-1]]
    if len(middle) < 2 or not all(v > 0 and math.isfinite(v) for v in middle):
        return None
    logs = torch.tensor(middle, dtype=torch.float64).log()
    depth = torch.arange(len(middle), dtype=torch.float64)
    depth -= depth.mean()
    return math.exp(float((depth * logs).sum() / depth.square().sum()))
