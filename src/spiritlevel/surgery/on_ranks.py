"""What passes over batches find, put together of all ranks and the same on each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spiritlevel.lent.pooled import Pooled
from spiritlevel.lent.score import Metric
from spiritlevel.lent.together import together
from spiritlevel.surgery.passes import Fed, Passes, Score

__all__ = ["fed_on_ranks", "scored_on_ranks"]


def fed_on_ranks(
    passes: Passes, done: Mapping[str, Pooled], paths: list[str], only: str | None = None
) -> tuple[dict[str, Fed], int]:
    """What the layers at `paths` are fed on all ranks, merged in the order of the ranks; batches.

    By path, in the order of their first call on the first rank that has it.
    """
    sizes = [4 + 2 * passes.norms[path].running_mean.numel() for path in paths]

    def work() -> Tensor:
        found = passes.fed(done, only)
        order = {path: place for place, path in enumerate(found, 1)}
        parts = [
            _packed(found[path], order[path]) if path in found else torch.zeros(size)
            for path, size in zip(paths, sizes, strict=True)
        ]
        return torch.cat([torch.tensor([passes.count], dtype=torch.float64), *parts])

    rows = together(work, 1 + sum(sizes))
    order: list[tuple[int, float, str]] = []
    merged: dict[str, Fed] = {}
    for rank, row in enumerate(rows):
        for path, part in zip(paths, row[1:].split(sizes), strict=True):
            place, count, calls, most = part[:4].tolist()
            if place:
                fed = Fed(Pooled(int(count), *part[4:].chunk(2)), int(calls), int(most))
                if path not in merged:
                    order.append((rank, place, path))
                merged[path] = _merged(merged[path], fed) if path in merged else fed
    return {path: merged[path] for _, _, path in sorted(order)}, int(rows[:, 0].sum())


def _packed(fed: Fed, place: int) -> Tensor:
    """(4 + 2C,): place in the order, from 1; values; calls; most calls; mean; variance."""
    head = [float(each) for each in (place, fed.pooled.count, fed.calls, fed.most)]
    return torch.cat([torch.tensor(head, dtype=torch.float64), fed.pooled.mean, fed.pooled.var])


def _merged(one: Fed, other: Fed) -> Fed:
    pooled = one.pooled.merged(other.pooled)
    return Fed(pooled, one.calls + other.calls, max(one.most, other.most))


_METRICS: tuple[Metric, ...] = ("accuracy", "mean squared error")


def scored_on_ranks(passes: Passes, done: Mapping[str, Pooled]) -> Score | None:
    """Of all ranks; None where one has batches whose targets do not fit, or which are others."""

    def work() -> Tensor:
        found = passes.scored(done)
        if found is None:
            kind = -1.0 if passes.count else 0.0  # a rank without batches asks for nothing
            return torch.tensor([kind, 0, 0, passes.same], dtype=torch.float64)
        kind = 1.0 + _METRICS.index(found.metric)
        row = [kind, found.total, found.samples, passes.same]
        return torch.tensor(row, dtype=torch.float64)

    rows = together(work, 4)
    passes.same = bool(rows[:, 3].all())
    kinds = {int(kind) for kind in rows[:, 0].tolist() if kind}
    samples = int(rows[:, 2].sum())
    if len(kinds) != 1 or -1 in kinds or not samples or not passes.same:
        return None
    return Score(_METRICS[kinds.pop() - 1], float(rows[:, 1].sum()), samples)
