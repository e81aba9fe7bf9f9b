"""The article's worked examples (b), (c), (d) on real layers and real images; (a) is arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.data import Images, prepare
from spiritlevel.lent.guard import undisturbed
from spiritlevel.probe import signal_by_depth
from spiritlevel.study.networks import build
from spiritlevel.study.tasks.common import feed, run, seeded

__all__ = ["EDGES", "bell", "scale", "shift"]

FROM, TO = 100.0, 50.0
"""The article's means, on the 0 to 255 scale of pixels."""


def shift(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """(b) Move the mean of a layer's input from 100 to 50 and see what the layer gives out.

    Real images, brightened or darkened to the two means, through a He-initialised 3x3 convolution,
    alone and followed by BN. Settings: seed, batch_size, channels, size.
    """
    size = min(settings["size"], images.size)
    data = prepare(images, size=size, standardise=False)
    seeded(settings["seed"])
    x = data.train_x[: settings["batch_size"]] * 255
    bright, dark = (x - x.mean() + mean for mean in (FROM, TO))
    # No padding: a border of zeros would itself change with the mean.
    layer = nn.Conv2d(data.channels, settings["channels"], 3, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    norm = nn.BatchNorm2d(settings["channels"])
    with torch.no_grad():
        plain = [layer(image) for image in (bright, dark)]
        normed = [norm(output) for output in plain]
    return {
        "input_means": [bright.mean().item(), dark.mean().item()],
        "without": _swing(*plain),
        "with": _swing(*normed),
    }


def _swing(first: Tensor, second: Tensor) -> dict[str, Any]:
    """How far each channel's mean moves, in units of its own deviation before the move."""
    axes = (0, 2, 3)
    moved = (second.mean(axes) - first.mean(axes)).abs() / first.std(axes)
    return {
        "means": [first.mean(axes).tolist(), second.mean(axes).tolist()],
        "mean_swing": moved.mean().item(),
        "largest_swing": moved.max().item(),
    }


def scale(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """(c) Inputs of scale 1000, 1 and 0.001 through a deep ReLU net, forward and backward.

    Settings: network, norm, init, input_scale, seed, depth, width, batch_size, size.
    """
    data = feed(images, settings)
    seeded(settings["seed"])
    model = build(settings, data)
    count = settings["batch_size"]
    x = data.train_x[:count] * settings["input_scale"]
    reading = signal_by_depth(model, x, data.train_y[:count])
    return {
        "activation_std": reading.activation_std,
        "weight_gradient": reading.weight_gradient,
        "last_activation": reading.activation_std[-1],
        "first_gradient": reading.weight_gradient[1],
    }


def bell(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """(d) The share of normalised activations within 1, 2, 3 deviations, before and after training.

    Read at every BN of a VGG-like net, before gamma and beta, on one batch of real images.
    Settings: network, norm, init, seed, lr, steps, batch_size, size, probe_images.
    """
    data = feed(images, settings)
    seeded(settings["seed"])
    model = build(settings, data)
    x = data.train_x[: settings["probe_images"]]
    before = _shares(model, x)
    run(model, data, settings)
    return {"before": before, "after": _shares(model, x)}


EDGES = [index / 10 - 5 for index in range(101)]
"""Bins of the histogram: -5 to 5 deviations by 0.1."""


def _shares(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Shares over all normalised values of all BN layers, each by its own channels' statistics."""
    values: list[Tensor] = []
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        axes = tuple(axis for axis in range(inputs[0].dim()) if axis != 1)
        std, mean = torch.std_mean(inputs[0], axes, correction=0, keepdim=True)
        values.append(((inputs[0] - mean) / (std.square() + norm.eps).sqrt()).flatten())

    with undisturbed(model), torch.no_grad(), ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(hook).remove)
        model.train()
        model(x)
    everything = torch.cat(values)
    distance = everything.abs()
    histogram = torch.histogram(everything, bins=torch.tensor(EDGES)).hist / len(everything)
    return {
        "within": {str(k): (distance <= k).float().mean().item() for k in (1, 2, 3)},
        "largest": distance.max().item(),
        "density": (histogram * 10).tolist(),
        "by_layer": [[(v.abs() <= k).float().mean().item() for k in (1, 2, 3)] for v in values],
    }
