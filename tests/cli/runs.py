"""Folders of runs, as training leaves them, of a small network that has learned digits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from spiritlevel.data import Preprocessing, load, prepare
from spiritlevel.models import create_model, save_weights
from spiritlevel.train import train

SIDE = 8


@cache
def digits():
    return load("digits", image_size=SIDE)


def trained(norm="batch", in_chans=1, num_classes=10, steps=60):
    """An MLP on digits; of more channels and classes untrained."""
    data = prepare(digits())
    torch.manual_seed(0)
    options = {"image_size": SIDE, "depth": 2, "width": 16, "in_chans": in_chans}
    model = create_model("mlp", num_classes, norm, **options)
    if in_chans == 1 and num_classes == 10:
        train(model, data.train_x, data.train_y, lr=0.1, steps=steps, batch_size=32, seed=0)
    return model


def fed(**change):
    images = digits()
    return replace(Preprocessing.of(prepare(images), images, "digits"), **change)


def run_of(folder, model, told=None, **options):
    """`folder`, with the model's weights as the best and the last of a run."""
    folder.mkdir(exist_ok=True)
    told = fed() if told is None else told
    for name in ("best", "last"):
        path = folder / f"{name}.safetensors"
        save_weights(model, path, preprocessing=told.to_dict(), **options)
    return folder
