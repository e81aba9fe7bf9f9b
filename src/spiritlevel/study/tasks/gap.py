"""Does the noise of the batch statistics narrow the gap between training and test set?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.data import Images, Prepared, batches
from spiritlevel.lent.guard import undisturbed
from spiritlevel.study.networks import build
from spiritlevel.study.tasks.common import compact, feed, seeded
from spiritlevel.train import SGD, Score, score

__all__ = ["MIN_IMAGES", "at_training_loss", "gap"]

MIN_IMAGES = 500
"""What a run draws to train on: few enough to overfit."""
_PAST = 0.5
"""The run ends below this share of the target: what follows is not used."""


@dataclass(frozen=True)
class _Split:
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def gap(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Train an MLP on few images and read the test loss where the training loss passes `target`.

    Noise on: statistics from the batch, or from groups of it (norm `ghost:g`). Noise off (norm
    `batch`, noise False): statistics from all training images at every step, with the gradient
    through them.
    Losses are read in eval mode with the exact statistics of the training images.
    Settings: network, norm, init, noise, seed, lr, steps, every, batch_size, size, images,
    test_images, target.
    """
    data = feed(images, settings)
    seed = settings["seed"]
    split = _draw(data, settings["images"], settings["test_images"], seed)
    seeded(seed)
    model = build(settings, data)
    scores = _train(model, split, settings)
    train_loss, test_loss = ([s.loss for s in column] for column in zip(*scores, strict=True))
    target = settings["target"]
    found = at_training_loss(train_loss, test_loss, target)
    accuracy = at_training_loss(train_loss, [s.accuracy for _, s in scores], target)
    return {
        "steps": [index * settings["every"] for index in range(len(scores))],
        "train_loss": compact(train_loss),
        "test_loss": compact(test_loss),
        "test_accuracy": compact([test.accuracy for _, test in scores]),
        "test_loss_at_target": found,
        "test_accuracy_at_target": accuracy,
        "gap_at_target": None if found is None else found - target,
    }


def _draw(data: Prepared, count: int, test_count: int, seed: int) -> _Split:
    """`count` of the training images and, of all others, `test_count` to test on, by seed."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.train_y), generator=draw)
    few, rest = order[:count], order[count:]
    test = torch.randperm(len(rest) + len(data.test_y), generator=draw)[:test_count]
    own, other = rest[test[test < len(rest)]], test[test >= len(rest)] - len(rest)
    return _Split(
        data.train_x[few],
        data.train_y[few],
        torch.cat([data.train_x[own], data.test_x[other]]),
        torch.cat([data.train_y[own], data.test_y[other]]),
    )


def _train(
    model: nn.Module, split: _Split, settings: Mapping[str, Any]
) -> list[tuple[Score, Score]]:
    optimizer = SGD(model, lr=settings["lr"])
    order = torch.Generator().manual_seed(settings["seed"])
    scores = [_scores(model, split)]
    drawn = batches(len(split.train_x), settings["batch_size"], settings["steps"], generator=order)
    for step, index in enumerate(drawn, 1):
        model.train()
        noisy = settings["noise"]
        logits = model(split.train_x[index]) if noisy else model(split.train_x)[index]
        optimizer.descend(F.cross_entropy(logits, split.train_y[index]))
        if step % settings["every"] == 0:
            scores.append(_scores(model, split))
            loss = scores[-1][0].loss
            if loss < settings["target"] * _PAST or not math.isfinite(loss):
                break
    return scores


def _scores(model: nn.Module, split: _Split) -> tuple[Score, Score]:
    """(training, test) in eval mode, running statistics set to those of all training images."""
    with undisturbed(model):
        _set_statistics(model, split.train_x)
        train = score(model, split.train_x, split.train_y, batch_size=5000)
        test = score(model, split.test_x, split.test_y, batch_size=5000)
    return train, test


def _set_statistics(model: nn.Module, x: Tensor) -> None:
    """One pass over all of `x`, momentum 1: running statistics become its own, layer by layer."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, getattr(norm, "group_size", None)) for norm in norms]
    try:
        for norm, (_, group) in zip(norms, before, strict=True):
            norm.momentum = 1.0
            if group is not None:
                norm.group_size = len(x)  # type: ignore[assignment]
        model.train()
        with torch.no_grad():
            model(x)
    finally:
        for norm, (momentum, group) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if group is not None:
                norm.group_size = group


def at_training_loss(train_loss: list[float], values: list[float], target: float) -> float | None:
    """`values` where the training loss first passes below `target`, log-linear between readings."""
    for index in range(1, len(train_loss)):
        above, below = train_loss[index - 1], train_loss[index]
        if above > target >= below > 0:
            share = math.log(above / target) / math.log(above / below)
            return values[index - 1] + share * (values[index] - values[index - 1])
    return None
