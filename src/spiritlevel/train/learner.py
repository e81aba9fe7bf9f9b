"""A model and all that moves it: one update at a time, whoever counts them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.train import build
from spiritlevel.train.ema import averaged
from spiritlevel.train.recipe import Recipe
from spiritlevel.train.schedule import scheduler

__all__ = ["Learner", "Part"]

_SMALLEST_SCALE = 2.0**-14
"""Of a loss in float16, whose smallest normal number it is."""


@dataclass(frozen=True)
class Part:
    """The images of one pass on this process."""

    x: Tensor
    """float32 (N, C, H, W); N may be 0 where several processes share a pass."""
    y: Tensor
    """int64 (N,)."""
    other: Tensor | None = None
    """The classes that are blended in: int64 (N,)."""
    own: float = 1.0
    """The share of `y` in the loss; the rest is that of `other`."""
    weight: float = 1.0
    """This process's share of the images of the pass."""


class Learner:
    """The parts of an update: gradients, their norm, the step.

    `autocast` is the dtype of mixed precision, None: there is none; with float16 the loss is
    scaled, and an update whose gradients overflow is left out. `wrap` is what makes of the model
    what is run forward, such as DistributedDataParallel; gradients are means over `ranks`.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        steps_per_epoch: int,
        *,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        ranks: int = 1,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.model, self.recipe, self.ranks = model, recipe, ranks
        self._per_epoch, self._autocast = steps_per_epoch, autocast
        self._format = torch.channels_last if channels_last else torch.preserve_format
        if channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = next(model.parameters()).device
        self.optimizer, self._criterion = build.optimizer(model, recipe), build.loss(recipe)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=autocast == torch.float16)
        self.average = averaged(model, recipe.ema_decay) if recipe.ema_decay else None
        self._schedule = scheduler(self.optimizer, recipe, steps_per_epoch)
        self._forward = model if wrap is None else wrap(model)

    @property
    def delivered(self) -> nn.Module:
        """What the run is for: the averaged model if one is kept, else the model."""
        return self.model if self.average is None else self.average.module

    def gradients(self, parts: Sequence[Part]) -> tuple[float, int]:
        """Make the gradients anew; this process's share of the loss, and its right answers."""
        self.optimizer.zero_grad()
        loss, hits = 0.0, 0
        for last, part in zip([False] * (len(parts) - 1) + [True], parts, strict=True):
            wait = None if last else getattr(self._forward, "no_sync", None)
            with nullcontext() if wait is None else wait():
                of_part, right = self._backward(part)
            loss, hits = loss + of_part, hits + right
        return loss, hits

    def _backward(self, part: Part) -> tuple[float, int]:
        logits, loss = self.passed(part)
        self._scaler.scale(loss * self.ranks).backward()  # type: ignore[no-untyped-call]
        return loss.item(), int((logits.argmax(1) == part.y).sum())

    def passed(self, part: Part, *, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Logits, and this process's share of the loss; `model` in the place of what is wrapped."""
        x = part.x.contiguous(memory_format=self._format) if part.x.dim() == 4 else part.x
        cast = self._autocast
        with torch.autocast(self._device.type, cast, enabled=cast is not None):
            logits = (self._forward if model is None else model)(x)
            return logits, self._loss(logits, part) * part.weight / self.recipe.accumulate

    def _loss(self, logits: Tensor, part: Part) -> Tensor:
        if not len(part.y):  # the mean of nothing; its gradients, zeros, are waited for
            return logits.sum() * 0.0
        loss: Tensor = self._criterion(logits, part.y)
        if part.other is not None:
            loss = part.own * loss + (1 - part.own) * self._criterion(logits, part.other)
        return loss

    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of all gradients, as they are minimised by."""
        self._scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._learning() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def update(self, gradient_norm: Tensor | None = None) -> None:
        """One step along the gradients, shortened where the recipe says so."""
        if self.recipe.clip_norm:
            norm = self.gradient_norm() if gradient_norm is None else gradient_norm
            nn.utils.clip_grads_with_norm_(self._learning(), self.recipe.clip_norm, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        with warnings.catch_warnings():
            # A first update that was left out for its overflow.
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)`")
            self._schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    @property
    def scaled(self) -> bool:
        """Whether an update whose gradients overflow is left out, and the next one scaled less.

        From a scale that is this small on, it is not for the scale that they overflow.
        """
        return bool(self._scaler.is_enabled()) and self._scaler.get_scale() > _SMALLEST_SCALE

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _learning(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def differs(self, state: Mapping[str, Any]) -> str:
        """What of a `state_dict` is not this model's, in words; empty where all is."""
        theirs, own = state["model"], self.model.state_dict()
        if odd := sorted(theirs.keys() ^ own.keys()):
            return f"{odd[0]} is in one of them only"
        for name, value in own.items():
            if isinstance(value, Tensor) and theirs[name].shape != value.shape:
                return f"{name} is {tuple(theirs[name].shape)} there, {tuple(value.shape)} here"
        groups = state["optimizer"]["param_groups"], self.optimizer.param_groups
        orders = [[group.get("param_names") for group in each] for each in groups]
        return "" if orders[0] == orders[1] else "its parameters stand in another order"

    def state_dict(self) -> dict[str, Any]:
        """All that the next update hangs on, but the images and the random states."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, done: int) -> None:
        """Go on from `state`, after `done` updates. Raises what torch raises of a misfit."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._scaler.load_state_dict(state["scaler"])
        self._schedule = scheduler(self.optimizer, self.recipe, self._per_epoch, done=done)
