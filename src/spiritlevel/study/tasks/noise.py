"""How noisy batch statistics make an image's features, by batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from spiritlevel.data import Images
from spiritlevel.probe import batch_noise, norm_places
from spiritlevel.study.networks import build
from spiritlevel.study.stats import log_slope
from spiritlevel.study.tasks.common import feed, run, seeded

__all__ = ["noise"]


def noise(settings: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """Train a net with BN, then read E_x Var_B[f_B(x)] at its first and last norm and its logits.

    Settings: network, norm, init, seed, lr, steps, batch_size, size, sizes (of the batches), draws,
    images.
    """
    data = feed(images, settings)
    seed = settings["seed"]
    seeded(seed)
    model = build(settings, data)
    run(model, data, settings)
    norms = norm_places(model)
    places = {"first": norms[0], "last": norms[-1], "logits": ""}
    draws = torch.Generator().manual_seed(seed)
    found = [
        batch_noise(
            model,
            data.test_x[: settings["images"]],
            data.train_x,
            batch_size=size,
            draws=settings["draws"],
            generator=draws,
            layers=[norms[0], norms[-1]],
        )
        for size in settings["sizes"]
    ]
    variance = {place: [reading[name] for reading in found] for place, name in places.items()}
    slopes = {place: log_slope(settings["sizes"], values) for place, values in variance.items()}
    return {"sizes": list(settings["sizes"]), "variance": variance, "slope": slopes}
