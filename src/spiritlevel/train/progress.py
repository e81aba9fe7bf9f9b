"""What a run says while it goes, and how it ends early."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Progress", "Stopped"]


@dataclass(frozen=True)
class Progress:
    """Told after each update, and with a `note` when something is to be said."""

    step: int
    steps: int
    epochs: int
    steps_per_epoch: int
    batch_size: int
    loss: float = math.nan
    accuracy: float = math.nan
    images_per_second: float = math.nan
    note: str | None = None


class Stopped(KeyboardInterrupt):
    """A signal asked for an end, and the run is saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(number)
        self.number, self.step = number, step
