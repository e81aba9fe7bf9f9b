"""What `recalibrate` tells in `model.spiritlevel_log`, with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from spiritlevel.lent.norms import batch_norms
from spiritlevel.lent.score import Metric
from spiritlevel.lent.together import ranks
from spiritlevel.surgery.log import Entry
from spiritlevel.surgery.passes import Fed, Score
from spiritlevel.surgery.statistics import moved, tracks

__all__ = [
    "Recalibrated",
    "Recalibration",
    "layer_entries",
    "left_entries",
    "many",
    "summary",
]


@dataclass(frozen=True)
class Recalibrated(Entry):
    """One layer's line of the log, with its numbers."""

    mean_shift: float
    """The largest of all channels, in standard deviations (with eps) that eval() divided by."""
    var_factor: tuple[float, float]
    """The least and the largest of all channels: the new variance over the old one."""
    values: int
    """A channel, over all batches, calls and ranks."""
    calls: int


@dataclass(frozen=True)
class Recalibration(Entry):
    """The line of the whole, before those of the layers, whose order it states."""

    sequential: bool
    batches: int
    """Of all ranks."""
    metric: Metric | None = None
    """None where accuracy was not asked for, or could not be measured."""
    before: float | None = None
    after: float | None = None
    samples: int = 0


def layer_entries(norms: Mapping[str, Any], fed: Mapping[str, Fed]) -> Iterator[Entry]:
    for path, each in fed.items():
        shift, least, largest = moved(norms[path], each.pooled)
        why = (
            f"mean moved by up to {shift:.3g} standard deviations, variance times {least:.3g} to "
            f"{largest:.3g}; {each.pooled.count:,} values a channel in {many(each.calls, 'call')}"
        )
        factor, count = (least, largest), each.pooled.count
        yield Recalibrated("recalibrated", (path,), why, shift, factor, count, each.calls)


def left_entries(
    model: nn.Module,
    norms: Mapping[str, Any],
    fed: Mapping[str, Fed],
    frozen: set[str],
    unmeasured: Mapping[str, str],
) -> Iterator[Entry]:
    """What keeps the statistics that it has, by reason; `unmeasured`: other reasons by path."""
    all_norms = batch_norms(model)
    reasons = {
        "no batch reached it": [
            path for path in norms if path not in fed and path not in unmeasured
        ],
        "frozen: kept in eval(), or not trained where others are": [
            path for path in all_norms if path in frozen
        ],
        **{
            reason: [
                path for path in all_norms if unmeasured.get(path) == reason and path not in frozen
            ]
            for reason in dict.fromkeys(unmeasured.values())
        },
        "it has no running statistics": [
            path for path, norm in all_norms.items() if not tracks(norm) and path not in frozen
        ],
        "of a frozen or scripted kind, or one that normalizes single samples": [
            path for path, m in model.named_modules() if tracks(m) and path not in all_norms
        ],
    }
    for why, paths in reasons.items():
        if paths:
            yield Entry("left", tuple(paths), why)
    if not norms and not any(reasons.values()):
        yield Entry("left", ("",), "it has no batch norm")


def summary(
    sequential: bool, batches: int, before: Score | None, after: Score | None, *, once: bool
) -> Recalibration:
    """`once`: accuracy was wanted of batches that do not come again."""
    how = (
        "one layer after another, in the order below, each fed what it sees in eval()"
        if sequential
        else "all layers at once, each by the batch's statistics meanwhile"
    )
    where = f" on {ranks()} ranks" if ranks() > 1 else ""
    why = f"{how}; {many(batches, 'batch')}{where}"
    if once:
        why += "; accuracy needs batches that can be read again"
    if before is None or after is None:
        return Recalibration("recalibrated", (), why, sequential, batches)
    metric, samples = before.metric, after.samples
    was, now = before.total / before.samples, after.total / after.samples
    why += f"; {metric} {was:.4g} -> {now:.4g} in eval() on {many(samples, 'sample')}"
    return Recalibration("recalibrated", (), why, sequential, batches, metric, was, now, samples)


def many(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count:,} {noun if count == 1 else plural}"
