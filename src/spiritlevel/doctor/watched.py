"""A model's norms as the probe has watched them, by their paths in the model that is checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.running import running
from spiritlevel.probe.counting import LayerCounts

__all__ = ["Watched", "spoiled", "typical", "watched"]


@dataclass(frozen=True)
class Watched:
    path: str
    seen_as: str
    """Its path in the probe's model, which may be a wrapper around this one."""
    norm: nn.Module
    counts: LayerCounts


def watched(case: Case) -> list[Watched]:
    """The batch norms that the probe knows, in the model's order."""
    known = {
        id(module): path
        for path, module in case.probe.model.named_modules()
        if path in case.probe.counts.layers
    }
    return [
        Watched(path, known[id(norm)], norm, case.probe.counts.layers[known[id(norm)]])
        for path, norm in case.batch_norms.items()
        if id(norm) in known
    ]


def typical(counter: Counter[int]) -> int:
    """The commonest value, 0 where there is none."""
    return counter.most_common(1)[0][0] if counter else 0


def spoiled(each: Watched) -> bool:
    """Whether its running statistics hold NaN or infinity."""
    statistics = running(each.norm)
    return statistics is not None and not all(bool(s.isfinite().all()) for s in statistics)
