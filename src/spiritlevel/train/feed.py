"""Which images each update sees, and how: known from the seed and the update's number alone.

So a run that goes on, alone or on other processes, sees what it would have seen; and the processes
of a run, which all draw for the whole batch, share it out without a word.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from spiritlevel.data import Pixels
from spiritlevel.data.augment import draw_moves
from spiritlevel.errors import UsageError
from spiritlevel.train.learner import Part
from spiritlevel.train.mixing import Mixing, draw_mixing
from spiritlevel.train.recipe import Recipe

__all__ = ["AUGMENTS", "Feed", "generator", "seeded"]

AUGMENTS = ("none", "crop", "crop-flip")
_ORDER, _LOOKS, _CHANCE = range(3)


def seeded(seed: int, *stream: int) -> int:
    """A seed for each stream of random numbers of a run, unlike those of its other streams."""
    return int(np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(seeded(seed, *stream))


@dataclass(frozen=True, eq=False)
class Feed:
    """Training images, of which `parts(step)` are what this process sees in an update.

    Each epoch is a new random order of `rows`; its incomplete last batch is dropped. `augment` is
    one of `AUGMENTS`. Of each pass process `rank` of `ranks` has a part as large as the others'
    within one image. Raises UsageError for a batch of more images than there are.
    """

    x: Pixels
    y: Tensor
    rows: Tensor
    """Of x and y, those that are trained on: int64."""
    recipe: Recipe
    seed: int
    augment: str = "none"
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.recipe.batch_size > len(self.rows):
            raise UsageError(
                f"got batch size {self.recipe.batch_size}, wanted at most {len(self.rows)}, the "
                "number of training images; take a smaller batch or more images"
            )
        if self.augment not in AUGMENTS:
            raise UsageError(f"got augment {self.augment!r}; wanted one of {', '.join(AUGMENTS)}")

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows) // self.recipe.batch_size

    def parts(self, step: int) -> list[Part]:
        """The passes of the update that comes after `step` others."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size, passes = self.recipe.batch_size, self.recipe.accumulate
        rows = self.rows[
            _order(len(self.rows), self.seed, epoch)[place * size : (place + 1) * size]
        ]
        looks = generator(self.seed, _LOOKS, step)
        return [self._part(part, looks) for part in rows.chunk(passes)]

    def _part(self, rows: Tensor, looks: torch.Generator) -> Part:
        moves = None
        if self.augment != "none":
            flip = self.augment == "crop-flip"
            moves = draw_moves(len(rows), generator=looks, flip=flip)
        mixing = self._mixing(len(rows), looks)
        mine = torch.arange(len(rows)).tensor_split(self.ranks)[self.rank]

        def images(which: Tensor) -> Tensor:
            x = self.x[rows[which]]
            return x if moves is None or not len(which) else moves[which](x)

        x, y, weight = images(mine), self.y[rows[mine]], len(mine) / len(rows)
        device = x.device
        if mixing is None:
            return Part(x, y.to(device), weight=weight)
        other = mixing.other[mine]
        blended = mixing.blend(x, images(other))
        others = self.y[rows[other]].to(device)
        return Part(blended, y.to(device), others, mixing.share, weight)

    def _mixing(self, n: int, looks: torch.Generator) -> Mixing | None:
        mixup, cutmix = self.recipe.mixup, self.recipe.cutmix
        if not (mixup or cutmix):
            return None
        sides = self.x.shape[-2], self.x.shape[-1]
        return draw_mixing(n, sides, mixup=mixup, cutmix=cutmix, generator=looks)

    def seed_process(self, step: int) -> None:
        """The random states of this process, for what a model draws itself, such as dropout."""
        drawn = seeded(self.seed, _CHANCE, self.rank, step)
        torch.manual_seed(drawn)
        random.seed(drawn)
        np.random.seed(drawn % 2**32)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator(seed, _ORDER, epoch))
