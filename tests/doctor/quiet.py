"""What a check says aloud, and whether it has left the model as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.doctor.check import check

__all__ = ["aloud", "changed", "snapshot"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def aloud(model: nn.Module, batches: Any = None, **options: Any) -> list[str]:
    """Its errors and warnings."""
    return [
        f"{found.rule} {found.severity} at {found.module}: {found.message}"
        for found in check(model, batches, **options).findings
        if found.severity != "info"
    ]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that may not change, by what it is called."""
    modules = list(model.named_modules(remove_duplicate=False))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "modules and modes": [(path, id(module), module.training) for path, module in modules],
        "hooks": [[len(getattr(module, hooks, ())) for hooks in _HOOKS] for _, module in modules],
        "attributes": [sorted(vars(module)) for _, module in modules],
        "tensors": [(name, id(tensor), tensor.requires_grad) for name, tensor in tensors],
        "values": [None if is_lazy(t) or t.is_meta else t.detach().clone() for _, t in tensors],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "random states": [
            torch.get_rng_state(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        ],
        "grad mode": torch.is_grad_enabled(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not the same, to the bit."""
    return [name for name, value in before.items() if not _same(value, after[name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
