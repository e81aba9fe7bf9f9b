"""Do layers' inputs keep still? Ioffe & Szegedy 2015, figure 1; Santurkar et al. 2018, figure 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.data import Images
from spiritlevel.probe import input_moments, unit_percentiles
from spiritlevel.study.tasks.common import build, seeded, tail_mean, training_images
from spiritlevel.train import score, train

__all__ = ["drift"]


def drift(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Train a sigmoid MLP; follow each unit's 15th, 50th and 85th percentile on fixed test images.

    Settings: norm, lr, seed, steps, every, batch_size, size, depth, width.
    """
    data = training_images(images, settings["size"], standardise=False)
    seeded(settings["seed"])
    model = build(
        "mlp",
        data,
        norm=settings["norm"],
        init="xavier",
        depth=settings["depth"],
        width=settings["width"],
        activation="sigmoid",
    )
    probe_x = data.test_x[:500]
    activations = [name for name, module in model.named_modules() if isinstance(module, nn.Sigmoid)]
    percentiles: dict[str, list[Tensor]] = {name: [] for name in activations}
    means: list[list[float]] = []
    stds: list[list[float]] = []

    def observe(_step: int, _x: Tensor, _y: Tensor) -> None:
        for name, value in unit_percentiles(model, probe_x, layers=activations).items():
            percentiles[name].append(value)
        moments = input_moments(model, probe_x, layers=activations)
        means.append([moments[name].mean for name in activations])
        stds.append([moments[name].std for name in activations])

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
    last = torch.stack(percentiles[activations[-1]])  # (T, 3, F)
    return {
        "loss": curve.loss,
        "accuracy": curve.accuracy,
        "diverged_at": curve.diverged_at,
        "final_loss": tail_mean(curve.loss),
        "test_accuracy": score(model, data.test_x, data.test_y, training=True).accuracy,
        "drift": [_drift(percentiles[name]) for name in activations],
        "range": [_range(percentiles[name]) for name in activations],
        "mean": means,
        "std": stds,
        "unit": last[:, :, 0].tolist(),
    }


def _drift(percentiles: Sequence[Tensor]) -> float:
    """The median's mean step between observations, in units of mean half-width (p85 - p15) / 2."""
    p15, p50, p85 = torch.stack(list(percentiles)).unbind(1)  # each (T, F)
    return (p50.diff(dim=0).abs().mean() / ((p85 - p15) / 2).mean()).item()


def _range(percentiles: Sequence[Tensor]) -> float:
    """How far the median travels in all, in the same units."""
    p15, p50, p85 = torch.stack(list(percentiles)).unbind(1)
    return ((p50.amax(0) - p50.amin(0)).mean() / ((p85 - p15) / 2).mean()).item()
