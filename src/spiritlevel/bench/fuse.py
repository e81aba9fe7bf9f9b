"""Whole training steps of known networks: as they are, in channels-last, and after `fuse`.

A step is forward, cross entropy, backward and SGD with momentum. The three start from the same
weights and are compared before they are timed: logits and loss, and both again after a step, where
the fused network may be as far from the first as torch's own channels-last is, times 10, or within
the tolerance. Peak memory is of one step, above weights and momentum; the plain networks have their
ReLUs in place, which is the least that eager torch needs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.bench.agree import agree
from spiritlevel.bench.nets import NETS
from spiritlevel.bench.peers import CHANNELS_LAST
from spiritlevel.bench.setting import Progress, Setting, share_of
from spiritlevel.bench.step import Step
from spiritlevel.bench.timing import Ratio, Samples, Subject, interleaved, pooled, ratio, summaries
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend

__all__ = ["fuse"]

Fuse = Callable[[nn.Module, Tensor], nn.Module]

_LEAST = 16
TOLERANCE = 1e-3
"""Of the largest logit: rounding grows through up to 53 layers."""
_EAGER, _LAST, _FUSED = "eager", f"eager{CHANNELS_LAST}", f"fused{CHANNELS_LAST}"
_FIGURES = {
    "eager": "eager contiguous over fused channels-last: above 1, fused is faster",
    "eager channels-last": "eager channels-last over fused channels-last",
}


def fuse(
    *,
    models: Sequence[str] = tuple(NETS),
    batch: int = 32,
    size: int = 224,
    rounds: int = 10,
    threads: int | None = None,
    progress: Progress | None = None,
    by: Fuse | None = None,
) -> dict[str, Any]:
    """All that was measured, for JSON. `by` stands in for `spiritlevel.surgery.fuse`.

    Raises UsageError, and Mismatch where outputs differ.
    """
    unknown = [name for name in models if name not in NETS]
    if unknown or not models:
        got = repr(unknown[0]) if unknown else "none"
        raise UsageError(f"got model {got}; wanted one or more of: {', '.join(NETS)}")
    if batch < 1 or size < 32 or batch * (size // 32) ** 2 < _LEAST:
        raise UsageError(
            f"got {batch=}, {size=}; wanted images of 32 pixels or more, and {_LEAST} values or "
            "more a channel in the last norm, batch * (size / 32)^2: from fewer, rounding alone "
            "drives equal networks apart"
        )
    by = by or _surgery()
    with Setting(rounds=rounds, threads=threads) as setting:
        rows, samples = [], []
        for done, model in enumerate(models):
            tell = share_of(progress, done / len(models), 1 / len(models), model)
            row, found = _measure(model, batch, size, rounds, by, tell)
            rows.append(row)
            samples.append(found)
        pairs = [_pairs(one) for one in samples]
        return {
            "command": "bench fuse",
            "settings": setting.told() | {"batch": batch, "size": size, "dtype": "float32"},
            "environment": setting.environment(),
            "tolerance": TOLERANCE,
            "cases": rows,
            "meaning": _FIGURES,
            "figures": {name: pooled([p[name] for p in pairs]).to_json() for name in _FIGURES},
        }


def _surgery() -> Fuse:
    from spiritlevel.surgery import fuse as by

    return by


def _measure(
    model: str, batch: int, size: int, rounds: int, by: Fuse, tell: Callable[[float], None]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    there = _steps(model, batch, size, by)
    before = backend.ran["cpu"]
    worst = _checked(there, model)
    ran = backend.ran["cpu"] - before
    samples = interleaved([Subject(name, step) for name, step in there.items()], rounds, tell)
    peaks = {name: step.peak_bytes() for name, step in there.items()}
    row = {
        "model": model,
        "largest_difference": worst,
        "passes_of_our_kernels": ran,
        "seconds": summaries(samples),
        "ratios": {name: one.to_json() for name, one in _ratios(samples).items()},
        "peak_bytes": peaks,
        "peak_ratio": peaks[_LAST] / peaks[_FUSED],
    }
    return row, samples


def _steps(model: str, batch: int, size: int, by: Fuse) -> dict[str, Step]:
    torch.manual_seed(0)
    net = NETS[model](num_classes=1000, inplace=True)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    found = {_EAGER: Step(copy.deepcopy(net), images, labels)}
    last: Any = {"memory_format": torch.channels_last}
    images = images.contiguous(**last)
    found[_LAST] = Step(copy.deepcopy(net).to(**last), images, labels)
    found[_FUSED] = Step(by(copy.deepcopy(net).to(**last), images), images, labels)
    return found


def _checked(there: Mapping[str, Step], model: str) -> dict[str, float]:
    """Runs two steps of each. Name -> the largest distance of what the first computed."""
    before = {name: step() for name, step in there.items()}
    after = {name: step() for name, step in there.items()}
    worst, spread = dict[str, float](), 0.0
    for name in (_LAST, _FUSED):
        worst[name] = agree(name, before[name], before[_EAGER], where=model, tolerance=TOLERANCE)
        allowed = max(TOLERANCE, 10 * spread)
        if name == _LAST:  # nothing but torch: how far rounding alone drives a step apart
            allowed = float("inf")
        where = f"{model} after a step"
        spread = agree(name, after[name], after[_EAGER], where=where, tolerance=allowed)
    return worst


def _pairs(samples: Mapping[str, Samples]) -> dict[str, tuple[Samples, Samples]]:
    return {name: (samples[name], samples[_FUSED]) for name in _FIGURES}


def _ratios(samples: Mapping[str, Samples]) -> dict[str, Ratio]:
    return {name: ratio(*pair) for name, pair in _pairs(samples).items()}
