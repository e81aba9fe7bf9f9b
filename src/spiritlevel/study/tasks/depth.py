"""Scale of activations and gradients through deep nets, at initialisation and while they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from spiritlevel.data import Images
from spiritlevel.probe import growth_per_layer, signal_by_depth
from spiritlevel.study.tasks.common import build, seeded, tail_mean, training_images
from spiritlevel.train import train

__all__ = ["deep", "depth"]


def depth(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """One pass at initialisation over a batch of real images.

    Settings: model, norm, init, activation, seed, depth, width, batch_size, size.
    """
    data = training_images(images, settings["size"])
    seeded(settings["seed"])
    options = {name: settings[name] for name in ("depth", "width", "activation")}
    model = build(settings["model"], data, norm=settings["norm"], init=settings["init"], **options)
    count = settings["batch_size"]
    reading = signal_by_depth(model, data.train_x[:count], data.train_y[:count])
    return _growth(reading.activation_std, reading.input_gradient) | asdict(reading)


def _growth(activation: tuple[float, ...], gradient: tuple[float, ...]) -> dict[str, float | None]:
    """Factors per layer: forward for activations, backward (loss to image) for gradients."""
    forward, onward = growth_per_layer(activation), growth_per_layer(gradient)
    return {"activation_growth": forward, "gradient_growth": None if onward is None else 1 / onward}


def deep(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Train a deep net and read the same quantities on the way.

    Settings: those of `depth`, and lr, steps, every.
    """
    data = training_images(images, settings["size"])
    seeded(settings["seed"])
    options = {name: settings[name] for name in ("depth", "width", "activation")}
    model = build(settings["model"], data, norm=settings["norm"], init=settings["init"], **options)
    steps: list[int] = []
    activation: list[tuple[float, ...]] = []
    gradient: list[tuple[float, ...]] = []

    def observe(step: int, x: Tensor, y: Tensor) -> None:
        reading = signal_by_depth(model, x, y)
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
        observe=observe,
        every=settings["every"],
    )
    return {
        "loss": curve.loss,
        "diverged_at": curve.diverged_at,
        "final_loss": None if curve.diverged_at is not None else tail_mean(curve.loss),
        "final_accuracy": tail_mean(curve.accuracy),
        "steps": steps,
        "activation_std": activation,
        "weight_gradient": gradient,
    }
