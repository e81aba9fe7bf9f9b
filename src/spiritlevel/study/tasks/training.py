"""One training run, read on the way: what its layers are fed, and what comes back to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.data import Images
from spiritlevel.probe import signal_by_depth, unit_percentiles
from spiritlevel.study.networks import build, places
from spiritlevel.study.tasks.common import compact, feed, final_loss, run, seeded, tail_mean
from spiritlevel.train import score

__all__ = ["training"]

_PROBE_IMAGES, _TEST_IMAGES = 256, 2000


def training(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Train; every `every` steps follow each unit's percentiles and each layer's signal.

    A unit's 15th, 50th and 85th percentile are those of what comes out of the norm, or of the place
    where there is none, on fixed test images (Ioffe & Szegedy 2015, figure 1).
    Settings: network, norm, init, lr, seed, steps, every, batch_size, size.
    """
    data = feed(images, settings)
    at = places(settings, data)
    seeded(settings["seed"])
    model = build(settings, data)
    reader = _Reader(model, data.test_x[:_PROBE_IMAGES], at)
    curve = run(model, data, settings, reader.observe)
    diverged = curve.diverged_at is not None
    x, y = data.test_x[:_TEST_IMAGES], data.test_y[:_TEST_IMAGES]
    return {
        "loss": compact(curve.loss),
        "accuracy": compact(curve.accuracy),
        "diverged_at": curve.diverged_at,
        "final_loss": final_loss(curve),
        "final_accuracy": 0.0 if diverged else tail_mean(curve.accuracy),
        "classes": data.num_classes,
        "test_accuracy": 0.0 if diverged else score(model, x, y).accuracy,
        "test_accuracy_batch": 0.0 if diverged else score(model, x, y, training=True).accuracy,
        **reader.found(),
    }


class _Reader:
    def __init__(self, model: nn.Module, x: Tensor, at: Sequence[str]) -> None:
        self.model, self.x, self.at = model, x, list(at)
        self.steps: list[int] = []
        self.layers: tuple[str, ...] = ()
        self.percentiles: dict[str, list[Tensor]] = {name: [] for name in at}
        self.activation: list[tuple[float, ...]] = []
        self.gradient: list[tuple[float, ...]] = []

    def observe(self, step: int, x: Tensor, y: Tensor) -> None:
        found = unit_percentiles(self.model, self.x, layers=self.at, outputs=True)
        for name, value in found.items():
            self.percentiles[name].append(value)
        reading = signal_by_depth(self.model, x, y)
        self.steps.append(step)
        self.layers = reading.layers
        self.activation.append(reading.activation_std)
        self.gradient.append(reading.weight_gradient)

    def found(self) -> dict[str, Any]:
        last = torch.stack(self.percentiles[self.at[-1]])  # (T, 3, F)
        return {
            "steps": self.steps,
            "places": self.at,
            "drift": [_drift(self.percentiles[name]) for name in self.at],
            "unit": compact(last[:, :, 0].tolist()),
            "layers": list(self.layers),
            "activation_std": compact(self.activation),
            "weight_gradient": compact(self.gradient),
        }


def _drift(percentiles: Sequence[Tensor]) -> float:
    """The median's mean step between readings, in units of mean half-width (p85 - p15) / 2."""
    p15, p50, p85 = torch.stack(list(percentiles)).unbind(1)  # each (T, F)
    return (p50.diff(dim=0).abs().mean() / ((p85 - p15) / 2).mean()).item()
