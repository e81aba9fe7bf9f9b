"""The images of a run: those that are trained on, those that choose, those that judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spiritlevel.data import Images, Pixels, load, prepare
from spiritlevel.data.images import stratified
from spiritlevel.data.preprocessing import Preprocessing
from spiritlevel.train.config import Config
from spiritlevel.train.feed import seeded

__all__ = ["Sets"]

_SPLIT = 3
"""Of the seed's streams: which images validate."""
_ON_DEVICE = 0.25
"""Share of a GPU's free memory that a set may take to live there."""


@dataclass(frozen=True, eq=False)
class Sets:
    """Made by `Sets.of`. The three have no image in common."""

    images: Images
    x: Pixels
    """Of `rows` and `validation`; on a GPU where there is room."""
    y: Tensor
    rows: Tensor
    """Those that are trained on: int64."""
    validation: Tensor
    """Those that choose the best weights: int64."""
    test_x: Pixels
    test_y: Tensor
    preprocessing: Preprocessing

    @classmethod
    def of(cls, config: Config, device: torch.device) -> Sets:
        """Raises UsageError, DataError and MissingExtra."""
        images = load(config.data, image_size=config.image_size or None)
        prepared = prepare(images, mean=config.mean or None, std=config.std or None)
        y, none = prepared.train_y, torch.arange(0)
        rows, validation = torch.arange(len(y)), none
        if config.validation:
            drawn = seeded(config.seed, _SPLIT)
            rows, validation = stratified(y, seed=drawn, share=config.validation)
            rows, validation = _learned(y, rows, validation)
        return cls(
            images,
            _placed(prepared.train_x, device),
            y,
            rows,
            validation,
            _placed(prepared.test_x, device),
            prepared.test_y,
            Preprocessing.of(prepared, images, config.data),
        )

    @property
    def validating(self) -> tuple[Rows, Tensor]:
        return Rows(self.x, self.validation), self.y[self.validation]


@dataclass(frozen=True)
class Rows:
    """Some of the images, as if they were all."""

    x: Pixels
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        return self.x[self.rows[which]]


def _learned(y: Tensor, rows: Tensor, validation: Tensor) -> tuple[Tensor, Tensor]:
    """A class of one image is trained on."""
    only = torch.bincount(y[rows], minlength=int(y.max()) + 1)[y[validation]] == 0
    return torch.cat([rows, validation[only]]), validation[~only]


def _placed(x: Pixels, device: torch.device) -> Pixels:
    if device.type != "cuda":
        return x
    free, _ = torch.cuda.mem_get_info(device)
    return x.to(device) if x.nbytes <= _ON_DEVICE * free else x
