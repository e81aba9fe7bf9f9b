"""Scale of activations and gradients through a network at initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from spiritlevel.data import Images
from spiritlevel.probe import growth_per_layer, signal_by_depth
from spiritlevel.study.networks import build
from spiritlevel.study.tasks.common import feed, seeded

__all__ = ["depth"]


def depth(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """One pass over a batch of real images.

    Settings: network, norm, init, seed, batch_size, size, and, of an MLP, depth, width, activation.
    """
    data = feed(images, settings)
    seeded(settings["seed"])
    model = build(settings, data)
    count = settings["batch_size"]
    reading = signal_by_depth(model, data.train_x[:count], data.train_y[:count])
    return _growth(reading.activation_std, reading.input_gradient) | asdict(reading)


def _growth(activation: tuple[float, ...], gradient: tuple[float, ...]) -> dict[str, float | None]:
    """Factors per layer: forward for activations, backward (loss to image) for gradients."""
    forward, onward = growth_per_layer(activation), growth_per_layer(gradient)
    return {"activation_growth": forward, "gradient_growth": None if onward is None else 1 / onward}
