"""What several claims ask of the records."""

from __future__ import annotations

import math
from statistics import fmean

from spiritlevel.study.records import Records

__all__ = ["best_rate", "mean_final_loss"]


def mean_final_loss(records: Records, task: str, **settings: object) -> float:
    """The final training loss, mean over seeds; infinite where a run diverged or none is there."""
    runs = records.select(task, **settings)
    losses = [run.result["final_loss"] for run in runs if run.result is not None]
    return math.inf if not losses or None in losses else fmean(losses)


def best_rate(records: Records, task: str, norm: str, **settings: object) -> float | None:
    """The learning rate at which an arm ends with the least training loss; None if it never ran."""
    rates = records.values(task, "lr", norm=norm, **settings)
    return min(
        rates,
        key=lambda lr: mean_final_loss(records, task, norm=norm, lr=lr, **settings),
        default=None,
    )
