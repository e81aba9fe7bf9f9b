"""Rules on running statistics: how they stand to what the layers are fed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.drift import (
    FAR_MEAN,
    FAR_VAR,
    YOUNG,
    Drift,
    and_others,
    drift_of,
    harmless,
    is_young,
    shift_between_calls,
)
from spiritlevel.doctor.finding import Finding, Severity
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.lent.score import Metric
from spiritlevel.probe.evidence import Layer
from spiritlevel.probe.gap import CURED
from spiritlevel.surgery.statistics import type_name

__all__: list[str] = []

MOST_TOLD = 5
"""Layers that one rule names; the first of them say how many more there are."""
INITIAL = 0.1
"""Share of the initial 0 and 1 in a moving average that explains why it is off."""
STUCK = 0.25
"""Share of the channels that no longer move, though they are off, from which it is told."""
OFF = 0.1
"""Deviations, or of log variance: below it a statistic that does not move is where it should be."""
MUCH: dict[Metric, float] = {"accuracy": 0.1, "mean squared error": 0.5}
"""A gap that makes results wrong: ten points, or half of the error in eval mode."""


@rule(
    "SL301",
    "stale-statistics",
    "warning",
    needs=("data",),
    threads=(
        "pytorch/pytorch#4741",
        "pytorch/pytorch#5406",
        "https://discuss.pytorch.org/t/7561",
        "https://discuss.pytorch.org/t/7146",
    ),
)
def stale_statistics(rule: Rule, case: Case) -> Iterator[Finding]:
    """Running statistics are not those of the data, so eval mode computes another function.

    In training a layer takes mean and variance of the batch, in eval mode the running ones. Where
    these stayed behind, or come from other data, another scale of the images or other weights, each
    layer's output is shifted and scaled, and the next layer's more so.

    Compared are, channel by channel, the running mean and variance with those of the layer's input
    over all batches in training mode; a layer is told where the middle channel is off by more than
    half a deviation or a factor of two, which is more than the moving average lags in a clean run.
    Initial values that are still in a young average are taken out first, three standard errors are
    granted. It is info only where the average is young, the batches are too few, or targets show
    that eval mode loses nothing. Silent on the factor n / (n - 1), on frozen layers, on those that
    never saw a batch (SL206) and on one layer shared by distributions (SL307).
    """
    found = []
    for path, layer in case.data.layers.items():
        drift = drift_of(layer)
        if drift is None or not drift.far or shift_between_calls(layer) is not None:
            continue
        found.append((path, layer, drift))
    found.sort(key=lambda each: -max(each[2].mean / FAR_MEAN, each[2].var / FAR_VAR))
    for path, layer, drift in found[:MOST_TOLD]:
        severity, why = _stale(case, layer, drift)
        yield rule.found(
            path,
            f"the running mean is {drift.mean:.2f} deviations from the mean of its input (at most "
            f"{FAR_MEAN}), the running variance off by a factor of {math.exp(drift.var):.3g} (at "
            f"most {math.exp(FAR_VAR):.3g}), in the middle channel; {why}"
            f"{and_others([each[0] for each in found]) if path == found[0][0] else ''}",
            fix="recalibrate: let the batch norms alone run in train() over training batches; "
            "check that inputs are scaled as in training",
            severity=severity,
            mean=drift.mean,
            mean_threshold=FAR_MEAN,
            log_variance=drift.var,
            log_variance_threshold=FAR_VAR,
            initial_share=drift.left,
            batches_tracked=layer.batches_tracked,
            layers=len(found),
        )


def _stale(case: Case, layer: Layer, drift: Drift) -> tuple[Severity, str]:
    if harmless(case):
        return "info", "eval mode loses nothing by it on these targets"
    young = is_young(layer)
    if (young and not drift.strong) or (not young and drift.left > INITIAL):
        momentum = layer.momentum or 0.1
        needed = math.ceil(YOUNG / momentum) - (layer.batches_tracked or 0)
        return "info" if young else "warning", (
            f"it has seen {layer.batches_tracked} batches, at momentum {momentum:g} "
            f"{drift.left:.1%} of it is the initial value: {needed} more training batches settle it"
        )
    if not drift.surely_far and not young:
        more = case.data.samples * 3
        return "info", f"that may be chance: give batches of {more} more samples to decide"
    return "warning", f"seen over {case.data.samples} samples in training mode"


@rule(
    "SL313",
    "step-below-ulp",
    "warning",
    needs=("data",),
    threads=("pytorch/pytorch#88929",),
)
def step_below_ulp(rule: Rule, case: Case) -> Iterator[Finding]:
    """Running statistics are in a type too coarse for their steps, and have stopped on the way.

    A step adds momentum x (batch - running). In bfloat16, with eight bits, a step of less than
    0.2 % of the value is rounded away: at momentum 0.001 a mean of 4 on its way to 9.93 stays
    where it is.

    For running statistics in bfloat16 or float16 the step from where they are towards the measured
    mean and variance is taken once in that type. A channel is stuck where nothing changes, though
    it is off by more than a tenth of a deviation or of its log variance. Silent on frozen layers.
    """
    for path, layer in case.data.layers.items():
        half = layer.dtype in (torch.bfloat16, torch.float16)
        if not half or layer.frozen or layer.train is None or not layer.batches_tracked:
            continue
        mean, var, momentum = layer.running_mean, layer.running_var, layer.momentum
        if mean is None or var is None or not momentum:
            continue
        pooled = layer.train.pooled
        fed = pooled.unbiased + layer.eps
        off_mean = (mean - pooled.mean).abs() / fed.sqrt() > OFF
        off_var = ((var.clamp(min=0) + layer.eps) / fed).log().abs() > OFF
        stuck = off_mean & _stays(mean, pooled.mean, momentum, layer.dtype)
        stuck |= off_var & _stays(var, pooled.unbiased, momentum, layer.dtype)
        share = float(stuck.double().mean())
        if share > STUCK:
            yield rule.found(
                path,
                f"{share:.0%} of the channels have running statistics in {type_name(layer.dtype)} "
                f"that a step at momentum {momentum:g} no longer changes, though they are off (at "
                f"most {STUCK:.0%})",
                fix="keep batch norms in float32: module.float() after model.half() or .bfloat16()",
                stuck=share,
                threshold=STUCK,
                momentum=momentum,
                dtype=type_name(layer.dtype),
            )


def _stays(running: Tensor, goal: Tensor, momentum: float, dtype: torch.dtype) -> Tensor:
    held = running.to(dtype)
    return (held.double() * (1 - momentum) + goal * momentum).to(dtype) == held


@rule(
    "SL316",
    "eval-gap",
    "error",
    needs=("targets",),
    threads=(
        "pytorch/pytorch#4741",
        "pytorch/pytorch#5406",
        "https://discuss.pytorch.org/t/7561",
    ),
)
def eval_gap(rule: Rule, case: Case) -> Iterator[Finding]:
    """The model does worse in eval mode than with batch statistics, on the same samples.

    The weights are not at fault: only the statistics differ, dropout is off in both. The gap must
    be beyond its 95 % interval and matter (two points of accuracy, 5 % of the squared error).

    Ten points, or half of the error, are an error; a warning where recalibrating closes it and no
    layer is so far off that SL301 tells it, for then the moving averages lag behind weights that
    move fast. Named is the layer that closes most of it alone on batch statistics, or the model
    where no layer closes half. Info where the moving averages are still young, for then more
    training closes it; silent before the first training step.
    """
    gap = case.gap
    if not gap.blames:
        return
    best = gap.layers[0] if gap.layers and gap.layers[0].closed > 0.5 else None
    trained = [layer for layer in case.data.layers.values() if layer.called and not layer.frozen]
    if gap.untrained:
        return  # SL206
    drifts = [drift_of(layer) for layer in trained]
    # No lag behind the weights explains statistics that are as far off as that.
    strong = any(drift and drift.strong for drift in drifts)
    young = any(is_young(layer) for layer in trained) and not strong
    large = gap.reaches(MUCH)
    lags = (gap.cured or 0.0) > CURED and not any(drift and drift.far for drift in drifts)
    text = gap.lines()[0]
    if best is not None:
        text += f"; {best.module} alone on batch statistics closes {best.closed:.0%} of it"
    if young:
        text += "; the running statistics are young, more training batches settle them"
    yield rule.found(
        best.module if best else "",
        text,
        fix="recalibrate, if that closes it; else see what is said of this layer's statistics",
        severity="info" if young else "error" if large and not lags else "warning",
        metric=gap.metric,
        eval=gap.eval.value,
        batch=gap.batch.value,
        recalibrated=None if gap.recalibrated is None else gap.recalibrated.value,
        gain=gap.gain.value,
        gain_low=gap.gain.low,
        threshold=0.0,
        samples=gap.samples,
    )
