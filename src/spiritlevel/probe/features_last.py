"""Which batch norms are given (N, L, features) with the steps L where channels are expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.activation import MultiheadAttention
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from spiritlevel.probe.layers import batch_norms

__all__ = ["fed_features_last"]

_LAST = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RNNBase, MultiheadAttention)
"""What gives features on the last axis; of a recurrent one with batch_first only."""


@contextmanager
def fed_features_last(model: nn.Module, found: dict[str, str]) -> Iterator[None]:
    """Enter norm -> module for each batch norm that gets the module's very output, of three axes.

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
                found.setdefault(path, held[id(given[0])][1])

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
