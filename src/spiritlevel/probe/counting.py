"""What is counted at every step, at the cost of a Python call a layer.

Most bugs of batch normalization show in how often a layer runs and in which mode it writes its
buffers, long before they show in a loss: a forward pass too many, one that a checkpoint runs again,
one of validation in train(), a step that the scaler skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["MANY", "OTHER", "Counts", "LayerCounts", "Mode", "in_backward", "walk_now"]

_KINDS = 1024
"""Different shapes that are told apart; all others are counted as one."""
OTHER = -1
"""What sizes of those are counted as."""
_OTHER = torch.Size((0, 0, 0, 0, 0, 0, 0))
MANY = 64
"""Passes a step that are told apart."""


class Mode(NamedTuple):
    """How a layer ran: in train() or eval(), with gradients recorded or not."""

    training: bool
    grad: bool


MODES = tuple(Mode(training, grad) for training in (False, True) for grad in (False, True))
"""By 2 * training + grad."""

walk_now = torch._C._current_graph_task_id
"""The number of autograd's walk back that goes on; -1 where none does."""


def in_backward() -> bool:
    """Whether autograd is walking back: what runs forward now, a checkpoint runs again."""
    return walk_now() != -1


class LayerCounts:
    """Of one normalization layer, since the probe began.

    `saw` runs for each layer at every step, where Python is slow since the step's own data have
    driven it out of the caches. So it adds to plain lists, and Counters are made when asked for.
    """

    def __init__(self) -> None:
        self.recomputed = 0
        """Forward passes within a backward pass, as a checkpoint runs them."""
        self.recomputed_writes = 0
        """Those of them that changed its running statistics once more."""
        self.per_step: Counter[int] = Counter()
        """Optimizer steps by the number of training passes with gradients in them."""
        self._written: Counter[int] = Counter()
        self._without_grad = 0
        self._forwards, self._writes = [0, 0, 0, 0], [0, 0, 0, 0]
        self._shapes: dict[torch.Size, int] = {}
        self._in_step = self._before_this_pass = 0
        self._axis = 1
        self._tracked: Tensor | None = None
        self._version = 0

    @property
    def forwards(self) -> Counter[Mode]:
        """Passes by mode, without those run again."""
        return Counter({mode: n for mode, n in zip(MODES, self._forwards, strict=True) if n})

    @property
    def writes(self) -> Counter[Mode]:
        """Passes that changed its running statistics, without those run again."""
        return Counter({mode: n for mode, n in zip(MODES, self._writes, strict=True) if n})

    @property
    def written_without_grad(self) -> Counter[int]:
        """Optimizer steps by the passes since the one before that wrote without gradients."""
        rest = [self._without_grad] if self._without_grad else []
        return self._written + Counter(rest)

    @property
    def batch_sizes(self) -> Counter[int]:
        """Training passes by the samples they had."""
        return _by(self._shapes, lambda shape: shape[0])

    @property
    def values(self) -> Counter[int]:
        """Training passes by the values that a channel had."""
        return _by(self._shapes, lambda shape: shape.numel() // max(shape[self._axis], 1))

    def begin(self, module: nn.Module, axis: int) -> None:
        self._axis = axis
        self._tracked, self._version = _tracked(module)
        self._in_step = 0

    def saw(self, module: nn.Module, shape: torch.Size, training: bool, grad: bool) -> None:
        """A forward pass of the layer has ended, on an input of this shape."""
        tracked = module._buffers.get("num_batches_tracked")
        if tracked is self._tracked and tracked is not None:
            # Autograd's version costs no look at the number, which may lie on a device.
            version = tracked._version
            wrote, self._version = version != self._version, version
            wrote = wrote and module.__dict__.get("momentum") != 0  # then all stays as it is
        else:
            wrote = self._wrote_unseen(module, training)
        if walk_now() != -1:
            self.recomputed += 1
            self.recomputed_writes += wrote
            return
        mode = 2 * training + grad
        self._forwards[mode] += 1
        self._writes[mode] += wrote
        if wrote and not grad:
            self._without_grad += 1
        if training:
            self._in_step += grad
            if shape not in self._shapes and len(self._shapes) >= _KINDS:
                shape = _OTHER
            self._shapes[shape] = self._shapes.get(shape, 0) + 1

    def _wrote_unseen(self, module: nn.Module, training: bool) -> bool:
        """Where there is no count of batches, or it was put there anew."""
        anew, (self._tracked, self._version) = self._tracked is not None, _tracked(module)
        keeps = module._buffers.get("running_mean") is not None
        if self._tracked is not None and not anew:
            anew = self._version > 0  # a lazy layer, just made
        return (anew or training) and keeps and getattr(module, "momentum", None) != 0

    def another_pass(self) -> None:
        self._before_this_pass = self._in_step

    def skipped(self, *, late: bool) -> None:
        """What the step has had is forgotten; `late`: but for the pass that has just been."""
        self._in_step -= self._before_this_pass if late else self._in_step

    def step(self) -> None:
        """The optimizer has stepped."""
        self.per_step[self._in_step if self._in_step < MANY else MANY] += 1
        self._written[self._without_grad if self._without_grad < MANY else MANY] += 1
        self._in_step = self._without_grad = 0


def _tracked(module: nn.Module) -> tuple[Tensor | None, int]:
    tracked = module._buffers.get("num_batches_tracked")
    if tracked is None or tracked.is_inference():
        return None, 0
    return tracked, tracked._version


def _by(shapes: dict[torch.Size, int], number: Callable[[torch.Size], int]) -> Counter[int]:
    found: Counter[int] = Counter()
    for shape, passes in shapes.items():
        if len(shape) > 1:
            found[OTHER if shape == _OTHER else number(shape)] += passes
    return found


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
