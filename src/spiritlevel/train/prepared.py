"""What a run starts from, the same on all of its processes: images, their order, a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from spiritlevel.data import Images
from spiritlevel.errors import UsageError
from spiritlevel.train.build import init_
from spiritlevel.train.build import model as build_ours
from spiritlevel.train.config import Config
from spiritlevel.train.feed import Feed
from spiritlevel.train.group import Group
from spiritlevel.train.sets import Sets

__all__ = ["Build", "prepared"]

Build = Callable[[Config, Images], nn.Module]


class Start(NamedTuple):
    sets: Sets
    feed: Feed
    model: nn.Module
    """On the device of its process, with its starting weights."""
    fingerprint: str
    """Of the images."""


def prepared(config: Config, group: Group, build: Build | None) -> Start:
    """Raises UsageError, DataError and MissingExtra, on all processes where one does."""
    sets, feed, model = group.agreed(lambda: _alone(config, group, build))
    fingerprint = sets.images.fingerprint
    _refuse_unlike(config, fingerprint, group)
    return Start(sets, feed, model, fingerprint)


def _alone(config: Config, group: Group, build: Build | None) -> tuple[Sets, Feed, nn.Module]:
    """All that one process can find wrong by itself."""
    sets = Sets.of(config, group.device)
    feed = Feed(
        sets.x,
        sets.y,
        sets.rows,
        config.recipe,
        seed=config.seed,
        augment=config.augment,
        rank=group.rank,
        ranks=group.size,
    )
    torch.manual_seed(config.seed)
    model = init_((build or build_ours)(config, sets.images), config.recipe)
    return sets, feed, model.to(group.device)


def _refuse_unlike(config: Config, fingerprint: str, group: Group) -> None:
    """Raises UsageError on all where one process has other options or images."""
    told = group.objects((config.to_dict(), fingerprint))

    def alike() -> None:
        for rank, (theirs, images) in enumerate(told):
            if other := Config.from_dict(told[0][0]).differs(theirs):
                raise UsageError(
                    f"got other options on rank {rank} ({'; '.join(other)}); wanted the same "
                    "on all. Start all by one command"
                )
            if images != told[0][1]:
                raise UsageError(
                    f"got other images on rank {rank} from {config.data}; wanted the same on all"
                )

    group.agreed(alike)
