"""Which modules count as layers: those that hold the weights."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spiritlevel.lent.guard import undisturbed

__all__ = [
    "WEIGHT_LAYERS",
    "WeightLayer",
    "norm_places",
    "normalised_weights",
    "parameter_groups",
    "weight_layers",
]

WeightLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
_NAMED = re.compile(r"(Batch|Group|Layer|Instance|RMS|Response)Norm")


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
    """Names of the modules that normalize, other libraries' included, as they were registered."""
    return [name for name, module in model.named_modules() if _is_norm(module)]


def _is_norm(module: nn.Module) -> bool:
    """By class, or by the name of one; a block that is named for the norm within it is none."""
    if isinstance(module, _NORMS):
        return True
    named = any(_NAMED.search(kind.__name__) for kind in type(module).__mro__)
    return named and not any(module.children())


def normalised_weights(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Weight layer -> the norm that is fed its very output, and nothing else is.

    One pass over `x` shows it; the model is left undisturbed. Left out is a layer whose output is
    changed, added or joined to another before a norm, or goes around it, in any of its calls.
    """
    made: dict[Any, list[Any]] = {}  # layer -> the graph's nodes, one a call
    fed: dict[Any, str] = {}  # node -> norm
    modules = dict(model.named_modules())

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            made.setdefault(name, []).append(output.grad_fn)

        return hook

    def match(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
            fed[inputs[0].grad_fn] = name
            # A view of it, so that a norm that reads its input twice still counts as one reader.
            return inputs[0].view_as(inputs[0]), *inputs[1:]

        return hook

    with undisturbed(model), torch.enable_grad(), ExitStack() as hooks:
        for name, layer in weight_layers(model).items():
            hooks.callback(layer.register_forward_hook(keep(name)).remove)
        for name in norm_places(model):
            hooks.callback(modules[name].register_forward_pre_hook(match(name)).remove)
        model.train()
        readers = _readers(model(x.detach().clone().requires_grad_(x.is_floating_point())))
    return {
        name: fed[nodes[-1]]
        for name, nodes in made.items()
        if all(node is not None and node in fed and readers[node] == 1 for node in nodes)
    }


def _readers(outputs: Any) -> Counter[Any]:
    """How often each node of the autograd graph behind `outputs` is read within it."""
    found = [leaf.grad_fn for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    readers: Counter[Any] = Counter(found)
    seen = set(found)
    while found:
        for node, _ in getattr(found.pop(), "next_functions", ()):
            readers[node] += 1
            if node is not None and node not in seen:
                seen.add(node)
                found.append(node)
    return readers
