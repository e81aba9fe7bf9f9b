"""SL209: running statistics that are not the same on all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.probe.ranks import Ranks

__all__: list[str] = []

APART = 0.1
"""Standard deviations, root mean square over channels. DistributedDataParallel hands rank 0's
buffers out before each forward pass, so one batch's share is always between ranks: with momentum
0.1 and batches of 8 values a channel 0.1 * sqrt(2 / 8) = 0.05."""
SAME = 1e-4
"""What float32 and other kernels make."""
FLOOR = 1e-3
"""Of the layer's mean variance: dead channels have next to none, and ratios that mean nothing."""


class _Spread(NamedTuple):
    layer: str
    means: float
    """Between the furthest two ranks, in standard deviations, root mean square over channels."""
    log_variance: float
    """Likewise, of the natural logarithms."""
    ranks: tuple[int, int]


@rule(
    "SL209",
    "ranks-disagree",
    "warning",
    threads=(
        "huggingface/pytorch-image-models#110",
        "open-mmlab/mmdetection#4582",
        "open-mmlab/mmaction2#675",
        "open-mmlab/mmpose#998",
    ),
)
def ranks_disagree(rule: Rule, case: Case) -> Iterator[Finding]:
    """The ranks of a distributed run have different running statistics.

    Each rank evaluates another model, and the file that rank 0 saves is its own view of the data.
    Run the check on all ranks at once; they tell each other their statistics (at most 64 channels a
    layer) and wait 10 s for one another. A warning from 0.1 standard deviations between means, or
    0.1 in the logarithm of the variances; less is info, since DistributedDataParallel leaves one
    batch's share between ranks until its next forward pass. A rank that does not answer is told as
    info. Silent with one process, and where all are equal, as SyncBatchNorm has them.
    """
    ranks = case.ranks
    if ranks is None:
        return
    if ranks.missing:
        yield rule.found(
            "",
            f"{len(ranks.missing)} of {ranks.world} ranks did not answer in {ranks.waited:g} s: "
            f"{', '.join(map(str, ranks.missing))}; so their running statistics are not compared",
            fix="run the check on all ranks at the same time",
            severity="info",
            missing=ranks.missing,
            world=ranks.world,
            seconds=ranks.waited,
        )
    spreads = [s for s in (_spread(ranks, layer) for layer in _layers(ranks)) if s]
    apart = [s for s in spreads if max(s.means, s.log_variance) > SAME]
    if not apart:
        return
    worst = max(apart, key=lambda spread: max(spread.means, spread.log_variance))
    one, other = worst.ranks
    yield rule.found(
        worst.layer,
        f"on ranks {one} and {other} the running means are {worst.means:.3g} standard deviations "
        f"apart and the variances {worst.log_variance:.3g} in the logarithm; wanted {APART} or "
        f"less ({len(apart)} of {len(spreads)} layers differ)",
        fix="torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) before training, or the mean of "
        "the buffers over ranks (all_reduce) before eval() and before saving",
        severity=None if max(worst.means, worst.log_variance) > APART else "info",
        means=worst.means,
        log_variance=worst.log_variance,
        threshold=APART,
        ranks=[one, other],
        layers=[spread.layer for spread in apart],
    )


def _layers(ranks: Ranks) -> list[str]:
    """Those that every rank that answered has."""
    return [
        layer
        for layer in ranks.statistics[ranks.rank]
        if all(layer in of_rank for of_rank in ranks.statistics.values())
    ]


def _spread(ranks: Ranks, layer: str) -> _Spread | None:
    """Between the two furthest ranks; None with one, or where shapes or numbers do not compare."""
    numbers = sorted(ranks.statistics)
    pairs = [ranks.statistics[rank][layer] for rank in numbers]
    if len(pairs) < 2 or len({len(mean) for mean, _ in pairs}) > 1:
        return None
    means, variances = (torch.tensor(values).double() for values in zip(*pairs, strict=True))
    if not (means.isfinite().all() and variances.isfinite().all() and (variances >= 0).all()):
        return None  # SL204 and SL205 speak of those
    variances = variances + FLOOR * variances.mean() + torch.finfo(torch.float32).tiny
    scaled = means / variances.mean(0).sqrt()
    logs = variances.log()
    size = scaled.shape[1] ** 0.5
    by_means, by_logs = torch.cdist(scaled, scaled) / size, torch.cdist(logs, logs) / size
    furthest = int(torch.maximum(by_means, by_logs).argmax())
    one, other = sorted(divmod(furthest, len(numbers)))
    return _Spread(
        layer,
        float(by_means[one, other]),
        float(by_logs[one, other]),
        (numbers[one], numbers[other]),
    )
