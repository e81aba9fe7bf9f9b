"""One run: plain SGD steps with a record of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd

from spiritlevel.data import Pixels, batches, crop_and_flip
from spiritlevel.lent.guard import undisturbed

__all__ = ["SGD", "Curve", "Observer", "Score", "score", "train"]

Observer = Callable[[int, Tensor, Tensor], None]
"""(step, x, y): called in training mode before the update of each observed step."""


@dataclass
class Curve:
    """Loss (nats) and accuracy (0 to 1) of each training batch before its update."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    diverged_at: int | None = None
    """The step whose loss was not finite: the run ends there. Divergence is a result."""


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy (nats) and accuracy (0 to 1) on a set of images."""

    loss: float
    accuracy: float


class SGD:
    """Stochastic gradient descent by torch's own arithmetic, p -= lr * buffer.

    The buffer is momentum * buffer + gradient. The class torch.optim.SGD does the same, but its
    first use imports torch's compiler: four seconds, in each of a study's processes.
    """

    def __init__(self, model: nn.Module, *, lr: float, momentum: float = 0.0) -> None:
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.lr, self.momentum = lr, momentum
        self.buffers: list[Tensor | None] = [None] * len(self.parameters)

    def descend(self, loss: Tensor) -> None:
        """One step along the gradient of `loss`."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        buffers = [self.buffers[i] for i in used]
        with torch.no_grad():
            sgd(
                [self.parameters[i] for i in used],
                [gradients[i] for i in used],
                buffers,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=0.0,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                foreach=False,
            )
        for i, buffer in zip(used, buffers, strict=True):
            self.buffers[i] = buffer


def train(
    model: nn.Module,
    x: Tensor | Pixels,
    y: Tensor,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    seed: int,
    momentum: float = 0.0,
    augment: bool = False,
    observe: Observer | None = None,
    every: int = 1,
) -> Curve:
    """SGD on cross-entropy, `steps` batches drawn by `seed`; x (N, C, H, W) float32, y (N,) int64.

    `augment` crops and flips each batch by chance, from the same seed. `observe` is called at every
    `every`-th step. Stops early at the first loss that is not finite.
    """
    optimizer = SGD(model, lr=lr, momentum=momentum)
    order = torch.Generator().manual_seed(seed)
    curve = Curve()
    model.train()
    for step, index in enumerate(batches(len(x), batch_size, steps, generator=order)):
        xb, yb = x[index], y[index]
        if augment:
            xb = crop_and_flip(xb, generator=order)
        if observe is not None and step % every == 0:
            observe(step, xb, yb)
        logits = model(xb)
        loss = F.cross_entropy(logits, yb)
        value = loss.item()
        curve.loss.append(value)
        curve.accuracy.append((logits.argmax(1) == yb).float().mean().item())
        if not math.isfinite(value):
            curve.diverged_at = step
            break
        optimizer.descend(loss)
    return curve


def score(
    model: nn.Module,
    x: Tensor | Pixels,
    y: Tensor,
    *,
    batch_size: int = 500,
    training: bool = False,
) -> Score:
    """Loss and accuracy on all of (x, y), leaving the model undisturbed.

    `training=True` normalises with the statistics of each batch, as in training.
    """
    loss, hits = 0.0, 0
    with undisturbed(model), torch.no_grad():
        model.train(training)
        for xb, yb in _chunks(x, y, batch_size):
            logits = model(xb)
            loss += F.cross_entropy(logits, yb, reduction="sum").item()
            hits += int((logits.argmax(1) == yb).sum())
    return Score(loss / len(x), hits / len(x))


def _chunks(x: Tensor | Pixels, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of nearly equal length, at most `size`: a single image would have no statistics."""
    start = 0
    for part in y.tensor_split(-(-len(y) // size)):
        end = start + len(part)
        yield x[start:end], part
        start = end
