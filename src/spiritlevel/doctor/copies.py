"""SL504 to SL506: running statistics that are not those of the weights beside them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from spiritlevel.doctor.against import Pair, kind
from spiritlevel.doctor.case import Case
from spiritlevel.doctor.drift import harmless
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import at_init, counted, listed, running, spared
from spiritlevel.doctor.twins import NEAR
from spiritlevel.probe.compare import unwrapped

__all__: list[str] = []

AVERAGED = 0.02
"""Of the weights' norm. An average so near to its source has nearly its statistics, too."""
FAR = 1.0
"""Standard deviations of the mean, or halvings of the variance, in the median channel. Data of the
same kind moves statistics by a few per cent."""


@rule(
    "SL504",
    "statistics-not-copied",
    "error",
    needs=("reference",),
    threads=(
        "DLR-RM/stable-baselines3#996",
        "DLR-RM/stable-baselines3#1004",
        "CuriousAI/mean-teacher#9",
        "HiLab-git/SSL4MIS#77",
        "facebookresearch/moco#70",
        "pytorch/ignite#2590",
        "TsingZ0/PFLlib#269",
        "hiwonjoon/tf-frrn#2",
        "LaurentMazare/tch-rs#628",
    ),
)
def statistics_not_copied(rule: Rule, case: Case) -> Iterator[Finding]:
    """The model has the reference's weights, or nearly, but its running statistics are as built.

    `parameters()` holds no buffers: a target, a teacher or an average that copies parameters only
    normalizes by mean 0 and variance 1 in eval(). Weights count as the reference's within 50 % of
    their norm, which networks started apart never are. Info where both have counted batches, the
    model fewer of them, and the statistics are far apart: they may be old, or taken anew. Silent on
    those where the weights are the very same, as after a recalibration.
    """
    against = case.against
    if not against.distance < NEAR:
        return
    pairs = [pair for pair in against.pairs if counted(pair.before) and running(pair.norm)]
    built = [pair for pair in pairs if at_init(pair.norm)]
    if built:
        path, more = listed([pair.path for pair in built])
        yield rule.found(
            path,
            f"the weights are within {against.distance:.1%} of the reference's, but the running "
            f"statistics{more} are mean 0 and variance 1, after {counted(built[0].norm):.0f} "
            f"batches; the reference's come from {counted(built[0].before):.0f}",
            fix="copy buffers() as well as parameters(), or load the whole state_dict()",
            distance=against.distance,
            threshold=NEAR,
            batches=counted(built[0].norm),
            batches_of_reference=counted(built[0].before),
            layers=[pair.path for pair in built],
        )
        return
    old = [p for p in pairs if counted(p.norm) < counted(p.before) and _far(p) > FAR]
    if old and against.changed:
        path, more = listed([pair.path for pair in old])
        yield rule.found(
            path,
            f"the running statistics{more} are those of {counted(old[0].norm):.0f} batches and "
            f"{_far(old[0]):.2g} standard deviations, or halvings of the variance, from the "
            f"reference's of {counted(old[0].before):.0f}; wanted {FAR:g} at most",
            fix="nothing, if they were taken anew; else copy the buffers of the reference",
            severity="info",
            distance=against.distance,
            far=_far(old[0]),
            threshold=FAR,
            layers=[pair.path for pair in old],
        )


def _far(pair: Pair) -> float:
    mine, theirs = running(pair.norm), running(pair.before)
    if mine is None or theirs is None or mine[0].shape != theirs[0].shape:
        return 0.0
    (mean, var), (mean_before, var_before) = mine, theirs
    tiny = torch.finfo(torch.float32).tiny
    shift = (mean - mean_before).abs() / var_before.clamp_min(tiny).sqrt()
    halvings = (var.clamp_min(tiny) / var_before.clamp_min(tiny)).log2().abs()
    return float(torch.maximum(shift, halvings).median())


@rule(
    "SL505",
    "frozen-recalibrated",
    "warning",
    needs=("reference",),
    threads=("qualcomm/aimet#1749",),
)
def frozen_recalibrated(rule: Rule, case: Case) -> Iterator[Finding]:
    """A batch norm that is frozen in the reference has other running statistics now.

    torch.optim.swa_utils.update_bn resets and measures every batch norm, also those that were put
    to eval(), or whose parameters take no gradient, to keep pretrained statistics. Frozen is a norm
    in eval() while the reference trains, or without grad where other parameters have it. Info where
    weights have changed, too, and only the mode said that it was frozen: it may have been freed on
    purpose. Silent where its parameters take gradients that they did not take in the reference.
    """
    against = case.against
    found: dict[bool, list[Pair]] = {True: [], False: []}
    for pair in against.other_statistics:
        by_grad, by_mode = _frozen(case.reference, pair.before)
        freed = by_grad and any(p.requires_grad for p in pair.norm.parameters(recurse=False))
        if (by_grad or by_mode) and not freed and kind(pair.norm) == kind(pair.before):
            found[by_grad or not against.changed].append(pair)
    for certain, pairs in found.items():
        if not pairs:
            continue
        path, more = listed([pair.path for pair in pairs])
        yield rule.found(
            path,
            f"is frozen in the reference{more}, but its running statistics have moved by "
            f"{_far(pairs[0]):.2g} standard deviations, or halvings of the variance, in the median "
            "channel; wanted none",
            fix="copy the reference's buffers back; recalibrate only norms that are not frozen, "
            "and keep those in eval()",
            severity="warning" if certain else "info",
            moved=_far(pairs[0]),
            threshold=0.0,
            layers=[pair.path for pair in pairs],
        )


def _frozen(model: nn.Module | None, norm: nn.Module) -> tuple[bool, bool]:
    """By its parameters, and by its mode."""
    if model is None:
        return False, False
    learns = any(p.requires_grad for p in model.parameters())
    return spared(norm) and learns, model.training and not norm.training


@rule(
    "SL506",
    "statistics-of-other-weights",
    "warning",
    needs=("reference",),
    threads=(
        "huggingface/pytorch-image-models#106",
        "fadel/pytorch_ema#13",
        "timgaripov/swa#7",
        "timgaripov/swa#8",
        "mosaicml/composer#624",
        "facebookresearch/schedule_free#60",
    ),
)
def statistics_of_other_weights(rule: Rule, case: Case) -> Iterator[Finding]:
    """Weights differ from the reference's, while running statistics are the very same numbers.

    Averaged, extrapolated or pruned weights give activations of other means and variances; the
    statistics are still those of the weights they were copied with. A warning where the layer is in
    train() or the model is an average: training would have moved the statistics with the weights.
    Info where all is in eval(), since the norms may have been kept in eval() while their scales
    were trained, where the weights are within 2 % of the reference's, and where targets show that
    eval() loses nothing by its statistics. Silent on norms whose own scale and bias are unchanged,
    or that are in eval() in a model that trains: they are frozen.
    """
    against = case.against
    names = set(against.changed)
    prefix = unwrapped(case.model)[1]
    found = [
        pair
        for pair in against.pairs
        if _same_statistics(pair)
        and counted(pair.before)
        and {f"{pair.path[len(prefix) :]}.{name}" for name in ("weight", "bias")} & names
        and (pair.norm.training or not case.model.training)
    ]
    if not found or not against.other_weights:
        return
    path, more = listed([pair.path for pair in found])
    averaged = any(name in type(case.model).__name__ for name in ("Average", "EMA", "Ema", "SWA"))
    certain = averaged or all(pair.norm.training for pair in found)
    grave = certain and against.distance > AVERAGED and not harmless(case)
    yield rule.found(
        path,
        f"the weights are {against.distance:.1%} from the reference's, but the running "
        f"statistics{more} are its very numbers; wanted those of these weights",
        fix="recalibrate: torch.optim.swa_utils.update_bn(loader, model), with frozen norms put "
        "back after it"
        + ("" if certain else "; nothing, if the norms were in eval() while it was trained"),
        severity="warning" if grave else "info",
        distance=against.distance,
        threshold=AVERAGED,
        batches=counted(found[0].before),
        layers=[pair.path for pair in found],
    )


def _same_statistics(pair: Pair) -> bool:
    mine, theirs = running(pair.norm), running(pair.before)
    return (
        mine is not None
        and theirs is not None
        and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    )
