"""Which modules count as layers: those that hold the weights."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.probe.guard import undisturbed

__all__ = [
    "NORMS",
    "WEIGHT_LAYERS",
    "WeightLayer",
    "norm_places",
    "normalised_weights",
    "parameter_groups",
    "weight_layers",
]

WeightLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


def weight_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """Linear and convolution modules by name, in the order they were registered."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, WEIGHT_LAYERS)
    }


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each weight layer, with those of the norm registered after it.

    A layer in the sense of Santurkar et al. 2018, definition 2.1, is a weight together with what is
    normalised, scaled and shifted before the next weight.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, WEIGHT_LAYERS):
            groups[name] = []
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        if groups:
            groups[next(reversed(groups))].extend(own)
    return groups


def norm_places(model: nn.Module) -> list[str]:
    """Names of the modules that normalize, in the order they were registered."""
    return [name for name, module in model.named_modules() if isinstance(module, NORMS)]


def normalised_weights(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Weight layer -> the norm that is fed its very output, as one pass over `x` shows.

    The model is left undisturbed. A norm that is fed a sum or a concatenation is left out.
    """
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            made[id(output)] = name, output  # the tensor is kept, so that its id stays its own

        return hook

    def match(norm: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made:
                found[made[id(inputs[0])][0]] = norm

        return hook

    modules = dict(model.named_modules())
    with undisturbed(model), torch.no_grad(), ExitStack() as hooks:
        for name, layer in weight_layers(model).items():
            hooks.callback(layer.register_forward_hook(keep(name)).remove)
        for name in norm_places(model):
            hooks.callback(modules[name].register_forward_pre_hook(match(name)).remove)
        model.train()
        model(x)
    return found
