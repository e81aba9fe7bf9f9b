"""The learning rate of each update, from the recipe alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spiritlevel.errors import UsageError
from spiritlevel.train.recipe import Recipe

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

__all__ = ["learning_rate", "scheduler"]

_ROUNDING = 1e-9
"""Epochs: 3 * 2.4 is a little more than 7.2."""


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of the update that comes after `step` others.

    Linear from `warmup_lr` to `lr` over the warm-up. Then, with "cosine", lr (1 + cos(pi t)) / 2
    for t from 0 at the warm-up's end to 1 at the run's; with "steps" and "periodic", `lr` times
    `gamma` for each milestone or whole period since the run's start. Raises UsageError.
    """
    if step < 0 or steps_per_epoch < 1:
        raise UsageError(f"got {step=}, {steps_per_epoch=}; wanted 0 or more, and 1 or more")
    epoch = step / steps_per_epoch
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * epoch / recipe.warmup_epochs
    if recipe.schedule == "cosine":
        t = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
        return recipe.lr * (1 + math.cos(math.pi * min(t, 1.0))) / 2
    if recipe.schedule == "periodic":
        drops = math.floor((epoch + _ROUNDING) / recipe.period)
    else:
        drops = sum(epoch + _ROUNDING >= milestone for milestone in recipe.milestones)
    return float(recipe.lr * recipe.gamma**drops)


def scheduler(
    optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int, *, done: int = 0
) -> LambdaLR:
    """torch's scheduler of that rate, `step()` after each update; `done` updates were made before.

    It sets every group to the rate of the next update. Raises UsageError.
    """
    from torch.optim.lr_scheduler import LambdaLR

    learning_rate(recipe, done, steps_per_epoch)  # raises for what cannot be
    for group in optimizer.param_groups:
        group["initial_lr"] = recipe.lr
    return LambdaLR(
        optimizer,
        lambda step: learning_rate(recipe, step, steps_per_epoch) / recipe.lr,
        last_epoch=done - 1,
    )
