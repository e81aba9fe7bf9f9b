"""Which batch norms are given (N, L, features) with the steps L where channels are expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.activation import MultiheadAttention
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from spiritlevel.lent.norms import batch_norms
from spiritlevel.lent.pooled import Pooled

__all__ = ["FeaturesLast", "fed_features_last"]

_LAST = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RNNBase, MultiheadAttention)
"""What gives features on the last axis; of a recurrent one with batch_first only."""


@dataclass(frozen=True)
class FeaturesLast:
    """An input (N, L, features) of a batch norm, in one batch."""

    source: str
    """The module that gave it."""
    steps: Pooled
    """The moments of each of the L steps, which become 0 and 1."""
    features: Pooled
    """Of each feature, once the norm has done so, before its scale and shift."""


def _read(source: str, x_NLC: Tensor) -> FeaturesLast:
    x_NLC = x_NLC.detach().double().cpu()
    var_L, mean_L = torch.var_mean(x_NLC, (0, 2), correction=0)
    done_NLC = (x_NLC - mean_L[:, None]) / (var_L[:, None] + 1e-5).sqrt()
    var_C, mean_C = torch.var_mean(done_NLC, (0, 1), correction=0)
    samples, steps, features = x_NLC.shape
    return FeaturesLast(
        source,
        Pooled(samples * features, mean_L, var_L),
        Pooled(samples * steps, mean_C, var_C),
    )


@contextmanager
def fed_features_last(model: nn.Module, found: dict[str, FeaturesLast]) -> Iterator[None]:
    """Enter for each batch norm that gets a module's very output, of three axes, what it gets.

    Activations and dropout as modules in between are seen through; what comes through anything
    else, a transposition above all, is another tensor and counts as right.
    """
    held: dict[int, tuple[Tensor, str]] = {}  # a held tensor's id is not given to another

    def out_of(path: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            first = next((t for t in tree_leaves(output) if isinstance(t, Tensor)), None)
            if first is None or first.dim() != 3:
                return
            if isinstance(module, _LAST):
                if getattr(module, "batch_first", True):
                    held[id(first)] = first, path
            elif given and id(given[0]) in held:
                held[id(first)] = first, held[id(given[0])][1]

        return hook

    def into(path: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> None:
            if given and id(given[0]) in held:
                found.setdefault(path, _read(held[id(given[0])][1], given[0]))

        return hook

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if isinstance(module, _LAST) or _elementwise(module):
                hooks.callback(module.register_forward_hook(out_of(path)).remove)
        for path, norm in batch_norms(model).items():
            hooks.callback(norm.register_forward_pre_hook(into(path)).remove)
        yield


def _elementwise(module: nn.Module) -> bool:
    of_torch = type(module).__module__ == "torch.nn.modules.activation"
    return of_torch or isinstance(module, _DropoutNd | nn.Identity)
