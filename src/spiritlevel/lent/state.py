"""What a forward pass may change in a model and around it, and how each of it is put back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["buffers_now", "modes_now", "random_states", "set_random_states"]

Restore = Callable[[], None]


def buffers_now(model: nn.Module) -> Restore:
    """Gives what makes the buffers what they are now: the same tensors, with the same values."""
    # By name, since a forward pass may assign a buffer anew: `self.n = self.n + 1`.
    held = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]

    @torch.no_grad()
    def restore() -> None:
        for module, name, buffer, saved in held:
            module._buffers[name] = buffer
            if buffer is not None and saved is not None:
                buffer.copy_(saved)

    return restore


def modes_now(model: nn.Module) -> Restore:
    """Gives what puts each module back into the mode, training or eval, that it is in now."""
    held = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in held:
            module.training = training

    return restore


def random_states() -> tuple[Any, Any]:
    """Of Python's and NumPy's generators, with which models choose what they run."""
    return random.getstate(), np.random.get_state()


def set_random_states(states: tuple[Any, Any]) -> bool:
    """To what `random_states` gave; whether they had changed since."""
    (python, (_, keys, *rest)), (before, numpy) = random_states(), states
    _, keys_before, *rest_before = numpy
    random.setstate(before)
    np.random.set_state(numpy)
    return python != before or rest != rest_before or not np.array_equal(keys, keys_before)
