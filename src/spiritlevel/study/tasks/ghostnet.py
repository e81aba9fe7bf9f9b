"""The article's own example: GhostNet, with BN after every convolution and without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spiritlevel.data import Images
from spiritlevel.models import create_model
from spiritlevel.probe import signal_by_depth
from spiritlevel.study.tasks.common import initialise, seeded, tail_mean, training_images
from spiritlevel.train import score, train

__all__ = ["ghostnet"]

LAST = 10
"""Batches over which a final loss and accuracy are averaged; these runs are short."""


def ghostnet(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Settings: model, norm, init, lr, seed, steps, every, batch_size, momentum, size."""
    data = training_images(images, settings["size"])
    seeded(settings["seed"])
    model = create_model(
        settings["model"],
        num_classes=data.num_classes,
        in_chans=data.channels,
        norm=settings["norm"],
        stem="cifar",  # images this small are not halved at the stem
    )
    initialise(model, settings["init"])
    steps: list[int] = []
    layers: tuple[str, ...] = ()
    activation: list[tuple[float, ...]] = []
    gradient: list[tuple[float, ...]] = []

    def observe(step: int, x: Tensor, y: Tensor) -> None:
        nonlocal layers
        reading = signal_by_depth(model, x, y)
        layers = reading.layers
        steps.append(step)
        activation.append(reading.activation_std)
        gradient.append(reading.weight_gradient)

    curve = train(
        model,
        data.train_x,
        data.train_y,
        lr=settings["lr"],
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        momentum=settings["momentum"],
        observe=observe,
        every=settings["every"],
    )
    diverged = curve.diverged_at is not None
    return {
        "loss": curve.loss,
        "accuracy": curve.accuracy,
        "diverged_at": curve.diverged_at,
        "final_loss": None if diverged else tail_mean(curve.loss, LAST),
        "final_accuracy": 0.0 if diverged else tail_mean(curve.accuracy, LAST),
        "test_accuracy_batch": None
        if diverged
        else score(model, data.test_x, data.test_y, batch_size=250, training=True).accuracy,
        "layers": layers,
        "steps": steps,
        "activation_std": activation,
        "weight_gradient": gradient,
    }
