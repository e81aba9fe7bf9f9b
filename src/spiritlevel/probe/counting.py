"""What is counted at every step, at the cost of a Python call a layer.

Most bugs of batch normalization show in how often a layer runs and in which mode it writes its
buffers, long before they show in a loss: a forward pass too many, one that a checkpoint runs again,
one of validation in train(), a step that the scaler skipped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Counts", "LayerCounts", "Mode", "in_backward"]

_KINDS = 64
"""Different sizes that are told apart; all others are counted as one, OTHER."""
OTHER = -1


class Mode(NamedTuple):
    """How a layer ran: in train() or eval(), with gradients recorded or not."""

    training: bool
    grad: bool


def in_backward() -> bool:
    """Whether autograd is walking back: what runs forward now, a checkpoint runs again."""
    return torch._C._current_graph_task_id() != -1


@dataclass
class LayerCounts:
    """Of one normalization layer, since the probe began."""

    forwards: Counter[Mode] = field(default_factory=Counter)
    """Without those run again."""
    writes: Counter[Mode] = field(default_factory=Counter)
    """Forward passes that changed its running statistics, without those run again."""
    recomputed: int = 0
    """Forward passes within a backward pass, as a checkpoint runs them."""
    recomputed_writes: int = 0
    """Those of them that changed its running statistics once more."""
    per_step: Counter[int] = field(default_factory=Counter)
    """Optimizer steps by the number of training passes with gradients in them."""
    batch_sizes: Counter[int] = field(default_factory=Counter)
    """Training passes by the samples they had."""
    values: Counter[int] = field(default_factory=Counter)
    """Training passes by the values that a channel had."""
    _in_step: int = 0
    _stamp: Any = None

    def begin(self, module: nn.Module) -> None:
        self._stamp, self._in_step = _stamp(module), 0

    def saw(self, module: nn.Module, x: Tensor, mode: Mode) -> None:
        """A forward pass of the layer has ended."""
        stamp = _stamp(module)
        wrote = mode.training if stamp is None else stamp != self._stamp
        wrote = wrote and getattr(module, "momentum", None) != 0  # a write that leaves all as it is
        self._stamp = stamp
        if in_backward():
            self.recomputed += 1
            self.recomputed_writes += wrote
            return
        self.forwards[mode] += 1
        self.writes[mode] += wrote
        if mode.training and x.dim() > 1:
            self._in_step += mode.grad
            _count(self.batch_sizes, len(x))
            _count(self.values, x.numel() // max(x.shape[1], 1))

    def step(self) -> None:
        """The optimizer has stepped."""
        _count(self.per_step, self._in_step)
        self._in_step = 0


def _count(counter: Counter[int], value: int) -> None:
    counter[value if value in counter or len(counter) < _KINDS else OTHER] += 1


def _stamp(module: nn.Module) -> Any:
    """Changes with each write of its count of batches; None without one, 0 without statistics.

    Autograd's version counter costs no look at the number, which may lie on a device.
    """
    if getattr(module, "running_mean", None) is None:
        return 0
    tracked = getattr(module, "num_batches_tracked", None)
    if not isinstance(tracked, Tensor) or tracked.is_inference():
        return None
    return id(tracked), tracked._version


@dataclass
class Counts:
    """Of the whole model, since the probe began."""

    steps: int = 0
    """Optimizer steps; without an optimizer, changes of the parameters between forward passes."""
    skipped: int = 0
    """Backward passes whose gradients were thrown away without a step, as a GradScaler does."""
    forwards: Counter[Mode] = field(default_factory=Counter)
    """Forward passes of the model itself, by its own mode."""
    backwards: int = 0
    """Backward passes that went through an output of the model."""
    perturbed: int = 0
    """Training passes before which the weights had moved within a step, as SAM moves them."""
    per_step: Counter[int] = field(default_factory=Counter)
    """Steps by the number of training passes of the model in them."""
    per_backward: Counter[int] = field(default_factory=Counter)
    """Backward passes by the number of training passes of the model since the one before."""
    all_eval_steps: int = 0
    """Steps whose training passes found the model and all of its norms in eval()."""
    first_eval_step: int | None = None
    """The first of them that came after a step in train()."""
    layers: dict[str, LayerCounts] = field(default_factory=dict)
    """By the path of each normalization layer."""
