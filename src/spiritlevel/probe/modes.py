"""What `model.eval()` really does to a model, seen by calling it; the model stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.lent.kept import kept
from spiritlevel.lent.norms import batch_norms

__all__ = ["training_after_eval"]


def training_after_eval(model: nn.Module) -> list[str]:
    """Paths of the batch norms that are in training after `model.eval()`.

    Called is only what somebody has written anew: where `train` and `eval` are torch's own, eval()
    reaches every module. None are named where eval() raises, and in a model with lazy layers.
    """
    norms = batch_norms(model)
    if not norms or not any(map(_own_modes, model.modules())):
        return []
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        return []
    with kept(model), _parameters_kept(model):
        try:
            model.eval()
        except Exception:  # exported programs have none
            return []
        return [path for path, norm in norms.items() if norm.training]


def _own_modes(module: nn.Module) -> bool:
    """Whether setting its mode, or those of its children, is not all torch's."""
    kind = type(module)
    return (
        kind.train is not nn.Module.train
        or kind.eval is not nn.Module.eval
        or kind.children is not nn.Module.children
        or hasattr(kind, "training")  # a property
        or not {"train", "eval", "children"}.isdisjoint(vars(module))
    )


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    """Their values too, since eval() merges weights in some models (LoRA) and freezes in others."""

    def held(parameter: Tensor) -> tuple[Tensor, Tensor, Tensor, bool, Tensor | None]:
        data = parameter.data
        return parameter, data, data.clone(), parameter.requires_grad, parameter.grad

    before = [held(parameter) for parameter in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, data, values, requires_grad, gradient in before:
                parameter.data = data
                parameter.data.copy_(values)
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
