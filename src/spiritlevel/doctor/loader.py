"""What a torch DataLoader tells of the batches it will give, without drawing one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)

__all__ = ["Loader"]


@dataclass(frozen=True)
class Loader:
    batch_size: int | None
    """None where a batch sampler of the user's own decides."""
    drop_last: bool
    samples: int | None
    """That one process draws in an epoch; None where it is not known before."""
    sampler: str
    """Its class."""
    in_order: bool
    """The samples come as they are stored."""
    distributed: bool
    """The sampler gives each process as many samples, by torch's `DistributedSampler`."""
    iterable: bool
    """The data set is a stream, whose length differs by process as it likes."""

    @property
    def last(self) -> int | None:
        """Samples in the last batch of an epoch; None where it is not known."""
        if self.samples is None or not self.batch_size or self.samples == 0:
            return None
        rest = self.samples % self.batch_size
        if rest and not self.drop_last:
            return rest
        return self.batch_size if self.samples >= self.batch_size else None

    @staticmethod
    def of(batches: Any) -> Loader | None:
        """None for what is no DataLoader."""
        if not isinstance(batches, DataLoader):
            return None
        iterable = isinstance(batches.dataset, IterableDataset)
        own = batches.batch_sampler
        known = own is None or type(own) is BatchSampler
        sampler = own.sampler if type(own) is BatchSampler else batches.sampler
        samples = None
        with suppress(TypeError, NotImplementedError):
            samples = len(batches.dataset if iterable else sampler)  # type: ignore[arg-type]
        return Loader(
            batch_size=getattr(own, "batch_size", batches.batch_size) if known else None,
            drop_last=bool(getattr(own, "drop_last", batches.drop_last)),
            samples=samples,
            sampler=type(sampler).__name__,
            in_order=isinstance(sampler, SequentialSampler) and known and not iterable,
            distributed=isinstance(sampler, DistributedSampler),
            iterable=iterable,
        )
