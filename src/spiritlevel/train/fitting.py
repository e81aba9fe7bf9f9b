"""One run by a recipe, in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spiritlevel.data import Pixels, batches, crop_and_flip
from spiritlevel.train.learner import Learner, Part
from spiritlevel.train.mixing import mix
from spiritlevel.train.recipe import Recipe
from spiritlevel.train.run import Curve

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
    learner = Learner(model, recipe, per_epoch)
    curve = Curve()
    model.train()
    for step, rows in enumerate(drawn):
        parts = (
            _part(x[part], y[part], recipe, order, augment)
            for part in rows.chunk(recipe.accumulate)
        )
        loss, hits = learner.gradients(list(parts))
        curve.loss.append(loss)
        curve.accuracy.append(hits / recipe.batch_size)
        if not math.isfinite(loss):
            curve.diverged_at = step
            break
        learner.update()
    return Fitted(curve, None if learner.average is None else learner.average.module)


def _part(x: Tensor, y: Tensor, recipe: Recipe, generator: torch.Generator, augment: bool) -> Part:
    if augment:
        x = crop_and_flip(x, generator=generator)
    if not (recipe.mixup or recipe.cutmix):
        return Part(x, y)
    x, other, own = mix(x, mixup=recipe.mixup, cutmix=recipe.cutmix, generator=generator)
    return Part(x, y, y[other], own)
