"""Ranks with unlike many batches, in step until all are done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from spiritlevel.errors import UsageError
from spiritlevel.lent.together import together

__all__ = ["in_step"]


def in_step(batches: Iterable[Any], group: Any = None) -> Iterator[tuple[Any, float]]:
    """This rank's batches, each with the share of its loss, until all ranks of the group are done.

        for (x, y), share in in_step(loader):
            loss = cross_entropy(model(x), y) * share
            loss.backward()

    A rank that has no more batches goes on with empty ones: `tensor[:0]` of each tensor of its last
    batch. So it still answers where others wait for it, in `SyncBatchNorm` as in
    `DistributedDataParallel`, whose `join` covers its own collectives, and none in a forward pass.

    `share` is ranks * samples / samples of all ranks in this step: with it DistributedDataParallel,
    which takes the mean of the ranks' gradients, gives those of the mean loss over all samples. The
    mean loss of no samples is NaN, times share 0; its gradients are zeros, and only its number is
    not to be added up.

    A batch is a tensor, or a tuple, list or dict of such, whose first axis is the samples. Each
    step is one small collective beside the model's; leave the loop on all ranks in the same step,
    or on none. Raises UsageError on all ranks where one has no batch at all while others do, where
    a batch has no tensor, and where the batches of one rank raise.
    """
    state = _State(iter(batches))
    while True:
        rows = together(state.advance, 3, group)
        samples, done, ready = rows.unbind(1)
        if bool(done.all()):
            return
        if not bool(ready.all()):
            lacking = [str(rank) for rank, each in enumerate(ready.tolist()) if not each]
            raise UsageError(
                f"got no batch at all on rank {', '.join(lacking)}, where an empty one would have "
                "to be made from it; wanted one or more on each rank"
            )
        total = float(samples.sum())
        yield state.batch, len(rows) * state.samples / total if total else 0.0


class _State:
    """Where this rank is in its batches."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.done, self.ready = batches, False, False
        self.batch: Any = None
        self.samples = 0

    def advance(self) -> Tensor:
        """To the next batch, or to an empty one: its samples, whether done, and whether it is."""
        try:
            if not self.done:
                self.batch = next(self.batches)
                self.samples, self.ready = _samples(self.batch), True
        except StopIteration:
            self.done, self.samples = True, 0
            # A copy, lest nothing of a batch keep all of it.
            self.batch = tree_map_only(Tensor, _nothing_of, self.batch)
        return torch.tensor([self.samples, self.done, self.ready], dtype=torch.float64)


def _nothing_of(t: Tensor) -> Tensor:
    return t[:0].clone() if t.dim() else t


def _samples(batch: Any) -> int:
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise UsageError(
        f"got a batch, a {type(batch).__name__}, without a tensor that has an axis of samples; "
        "wanted a tensor, or a tuple, list or dict of tensors"
    )
