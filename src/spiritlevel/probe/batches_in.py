"""What one batch norm is fed, batch after batch: read at its door, and let go at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spiritlevel.lent.as_used import takes_batch
from spiritlevel.lent.feeding import SingleValue
from spiritlevel.lent.heard import channels_first
from spiritlevel.lent.pooled import Pooled, by_sample
from spiritlevel.probe.independence import Spread

__all__ = ["MOST_CALLS", "Padding", "Reading", "Recorder"]

MOST_CALLS = 64
"""Calls a pass that are kept apart; what comes after them is put to the last."""


@dataclass(frozen=True)
class Padding:
    """Of a layer fed (N, C, L): what is exactly repeated at the end of the sequences."""

    share: float
    """Of the positions."""
    without: Pooled
    """The moments of all other positions."""


@dataclass(frozen=True)
class Reading:
    """What a layer was fed in one mode; B batches, C channels, float64, on the CPU."""

    batches: tuple[int, ...]
    """The places of the batches whose input was finite."""
    values: tuple[int, ...]
    """Values a channel in the smallest statistic of each: one call, one ghost group."""
    calls: int
    """The most in one pass."""
    mean: Tensor
    """(B, C), over all calls."""
    var: Tensor
    """(B, C), biased."""
    counts: tuple[int, ...]
    """Values a channel, over all calls."""
    by_call: tuple[Pooled, ...]
    """Over all batches, by the place of the call in its pass."""
    spread: Spread | None
    """Of the samples' own means, in the first call; None where a row is no sample."""
    padding: Padding | None
    rank: int
    """Axes of the input."""

    @property
    def pooled(self) -> Pooled:
        """Over all batches."""
        return Pooled.of_all(self.by_call)

    def of(self, place: int) -> Pooled:
        """Of the batch at that place of `batches`."""
        return Pooled(self.counts[place], self.mean[place], self.var[place])


@dataclass
class _Calls:
    """What has been gathered of one layer."""

    batches: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    pooled: list[Pooled] = field(default_factory=list)
    by_call: list[Pooled] = field(default_factory=list)
    spreads: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    all_samples: bool = True
    padded: int = 0
    positions: int = 0
    without: Pooled | None = None
    rank: int = 0
    calls: int = 0
    """In this pass so far."""
    most: int = 0
    """Calls, in one pass."""

    def add(self, batch: int, values: int, pooled: Pooled) -> None:
        """One call more: to its batch, and to its place among the calls of the pass."""
        if self.batches[-1:] == [batch]:
            self.values[-1] = min(self.values[-1], values)
            self.pooled[-1] = self.pooled[-1].merged(pooled)
        else:
            self.batches.append(batch)
            self.values.append(values)
            self.pooled.append(pooled)
        place = min(self.calls, MOST_CALLS - 1)
        if place < len(self.by_call):
            self.by_call[place] = self.by_call[place].merged(pooled)
        else:
            self.by_call.append(pooled)
        self.calls += 1
        self.most = max(self.most, self.calls)


class Recorder:
    """Gathers the readings of all batch norms over the batches of one mode."""

    def __init__(self, padding: bool = False) -> None:
        self.padding = padding
        self._gathered: dict[str, _Calls] = {}
        self._batch, self._size = 0, 0

    def starts(self, batch: int, size: int) -> None:
        self._batch, self._size = batch, size
        for each in self._gathered.values():
            each.calls = 0

    def reads(self, path: str, norm: nn.Module, x: Tensor) -> bool:
        """One call; whether its input was finite. Raises SingleValue where torch would refuse."""
        x = channels_first(norm, x)
        kept = self._gathered.setdefault(path, _Calls())
        values = _smallest(norm, x)
        if values < 2 and takes_batch(norm):
            raise SingleValue(path)
        mean_NC, var_NC, low_NC = by_sample(x)
        pooled = Pooled.of_samples(mean_NC, var_NC, low_NC, x[0, 0].numel())
        if not bool((pooled.mean + pooled.var).isfinite().all()):
            return False  # float64 holds the square of any float32: the input itself was not
        if kept.calls == 0:
            kept.all_samples &= len(x) == self._size
            mean = mean_NC.mean(0)
            kept.spreads.append((len(x), mean, (mean_NC - mean).square().sum(0)))
        kept.rank = x.dim()
        kept.add(self._batch, values, pooled)
        if self.padding and x.dim() == 3:
            self._pad(kept, x)
        return True

    def _pad(self, kept: _Calls, x_NCL: Tensor) -> None:
        run_N = repeated_at_end(x_NCL)
        kept.padded += int(run_N.sum())
        kept.positions += len(x_NCL) * x_NCL.shape[2]
        places = torch.arange(x_NCL.shape[2], device=run_N.device)
        real_NL = places < (x_NCL.shape[2] - run_N)[:, None]
        real = x_NCL.movedim(1, -1)[real_NL].double().cpu()  # (positions, C)
        var, mean = torch.var_mean(real, 0, correction=0)
        found = Pooled(len(real), mean, var)
        kept.without = found if kept.without is None else kept.without.merged(found)

    @property
    def called(self) -> set[str]:
        """Paths, also of those that were fed nothing finite."""
        return set(self._gathered)

    def readings(self) -> dict[str, Reading]:
        """By path, in the order in which the layers were first called."""
        return {path: _reading(kept) for path, kept in self._gathered.items() if kept.batches}


def _reading(kept: _Calls) -> Reading:
    padding = None
    if kept.padded and kept.without is not None:
        padding = Padding(kept.padded / kept.positions, kept.without)
    spread = None
    if kept.all_samples:
        sizes, means, squares = zip(*kept.spreads, strict=True)
        spread = Spread(sizes, torch.stack(means), torch.stack(squares))
    return Reading(
        tuple(kept.batches),
        tuple(kept.values),
        kept.most,
        torch.stack([each.mean for each in kept.pooled]),
        torch.stack([each.var for each in kept.pooled]),
        tuple(each.count for each in kept.pooled),
        tuple(kept.by_call),
        spread,
        padding,
        kept.rank,
    )


def repeated_at_end(x_NCL: Tensor) -> Tensor:
    """How many positions at the end of each sample are exactly the last one: (N,); 0 for one.

    A sample that is the same everywhere has no end, and counts as 0.
    """
    same_NL = (x_NCL == x_NCL[..., -1:]).all(1)
    run_N = same_NL.flip(1).long().cumprod(1).sum(1)
    whole = run_N == x_NCL.shape[2]
    return torch.where((run_N > 1) & ~whole, run_N, 0)


def _smallest(norm: nn.Module, x: Tensor) -> int:
    samples, group = len(x), getattr(norm, "group_size", None)
    if isinstance(group, int) and takes_batch(norm) and samples > group:
        samples = samples % group or group
    return samples * x.shape[2:].numel()
