"""A small set of made-up images, which a network learns in a few steps."""

from __future__ import annotations

from functools import cache

import torch

from spiritlevel.data import Images

CLASSES = 3


@cache
def tiny(channels: int = 1, train: int = 200, test: int = 60) -> Images:
    """Noise of 32 px a side, no image twice, with a bright bar whose place tells the class."""
    generator = torch.Generator().manual_seed(0)
    n = train + test
    x = torch.randint(128, (n, channels, 32, 32), generator=generator, dtype=torch.uint8)
    y = torch.randint(CLASSES, (n,), generator=generator)
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, :, 10 * label : 10 * label + 8] += 100
    return Images(
        name="tiny",
        train_x=x[:train],
        train_y=y[:train],
        test_x=x[train:],
        test_y=y[train:],
        classes=("left", "middle", "right"),
        origin="made up",
        licence="none",
        notes=(),
    )
