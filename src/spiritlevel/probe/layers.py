"""Which modules count as layers: those that hold the weights."""

from __future__ import annotations

from torch import nn

__all__ = ["WEIGHT_LAYERS", "WeightLayer", "parameter_groups", "weight_layers"]

WeightLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
