"""What BN decouples exactly, in the network itself: each layer from the scale of its weight."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor, nn

from spiritlevel.data import Images, Prepared
from spiritlevel.errors import UsageError
from spiritlevel.probe import norm_places, normalised_weights, weight_scaling
from spiritlevel.study.networks import build
from spiritlevel.study.tasks.common import feed, seeded
from spiritlevel.study.tasks.landscape import evenly

__all__ = ["scaling"]

EPSILONS = (0.0, 1e-5)
SCALES = (0.01, 10.0, 1000.0)
_NO_EPS = 1e-300
"""torch refuses 0; beside any variance in float64 this is nothing."""
_MOST_LAYERS = 6


def scaling(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Multiply the weights of layers that a norm follows directly, one layer at a time, in float64.

    The control is the same network without its norms. Settings: network, init, seed, batch_size,
    size.
    """
    data = feed(images, settings)
    count = settings["batch_size"]
    x, y = data.train_x[:count].double(), data.train_y[:count]
    layers = evenly(list(normalised_weights(_made(settings, data, "batch", 0.0), x)), _MOST_LAYERS)
    if not layers:
        raise UsageError(
            f"got {settings['network']}, in which no norm is fed by a weight layer directly; "
            "wanted one that is: its scale is what a norm takes away"
        )
    found = {eps: _worst(_made(settings, data, "batch", eps), x, y, layers) for eps in EPSILONS}
    without, cosine_without = _worst(_made(settings, data, "none", 0.0), x, y, layers)
    return {
        "scales": list(SCALES),
        "layers": layers,
        "errors": {str(eps): errors for eps, (errors, _) in found.items()},
        "errors_without": without,
        "cosine": found[0.0][1],
        "cosine_without": cosine_without,
    }


def _made(settings: Mapping[str, Any], data: Prepared, norm: str, eps: float) -> nn.Module:
    seeded(settings["seed"])
    model = build(settings, data, norm=norm).double()
    for name in norm_places(model):
        place: Any = model.get_submodule(name)
        place.eps = eps or _NO_EPS
    return model


def _worst(model: nn.Module, x: Tensor, y: Tensor, layers: list[str]) -> tuple[list[float], float]:
    """By scale the largest error over layers; and the mean |cos(w, dL/dw)|."""
    readings = [weight_scaling(model, x, y, name, scales=SCALES) for name in layers]
    errors: list[float] = np.max([r.errors for r in readings], axis=0).tolist()  # NaN if one is
    return errors, fmean(r.cosine for r in readings)
