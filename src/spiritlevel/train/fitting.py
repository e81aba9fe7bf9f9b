"""One run by a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spiritlevel.data import Pixels, batches, crop_and_flip
from spiritlevel.train import build
from spiritlevel.train.ema import averaged
from spiritlevel.train.mixing import mix
from spiritlevel.train.recipe import Recipe
from spiritlevel.train.run import Curve
from spiritlevel.train.schedule import scheduler

__all__ = ["Fitted", "fit"]


@dataclass(frozen=True)
class Fitted:
    """What `fit` gives: how it went, and the averaged model if the recipe keeps one."""

    curve: Curve
    """Of each update: the loss that was minimised, and the accuracy on images as they are fed."""
    average: nn.Module | None


def fit(
    model: nn.Module,
    x: Tensor | Pixels,
    y: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    augment: bool = False,
) -> Fitted:
    """Train from the weights that the model has; x (N, C, H, W) float32, y (N,) int64.

    `seed` draws the order, which is new in each epoch, crops and flips (`augment`) and what is
    mixed. An epoch's incomplete last batch is dropped. The recipe's `init` and `dropout` are the
    model's: see `init_`. Ends early at a loss that is not finite. Raises UsageError.
    """
    per_epoch = len(x) // recipe.batch_size
    order = torch.Generator().manual_seed(seed)
    drawn = batches(len(x), recipe.batch_size, recipe.epochs * per_epoch, generator=order)
    optimizer, criterion = build.optimizer(model, recipe), build.loss(recipe)
    schedule = scheduler(optimizer, recipe, per_epoch)
    average = averaged(model, recipe.ema_decay) if recipe.ema_decay else None
    curve = Curve()
    model.train()
    for step, rows in enumerate(drawn):
        optimizer.zero_grad()
        loss, hits = 0.0, 0.0
        for part in rows.chunk(recipe.accumulate):
            xb, yb = x[part], y[part]
            if augment:
                xb = crop_and_flip(xb, generator=order)
            part_loss, part_hits = _backward(model, criterion, xb, yb, recipe, order)
            loss, hits = loss + part_loss, hits + part_hits
        curve.loss.append(loss)
        curve.accuracy.append(hits / recipe.batch_size)
        if not math.isfinite(loss):
            curve.diverged_at = step
            break
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
        if average is not None:
            average.update_parameters(model)
    return Fitted(curve, None if average is None else average.module)


def _backward(
    model: nn.Module,
    criterion: nn.CrossEntropyLoss,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Add one pass's share to the gradients; its share of the loss, and its right answers."""
    other, share = None, 1.0
    if recipe.mixup or recipe.cutmix:
        x, other, share = mix(x, mixup=recipe.mixup, cutmix=recipe.cutmix, generator=generator)
    logits = model(x)
    loss = criterion(logits, y)
    if other is not None:
        loss = share * loss + (1 - share) * criterion(logits, y[other])
    loss = loss / recipe.accumulate
    loss.backward()
    return loss.item(), (logits.argmax(1) == y).sum().item()
