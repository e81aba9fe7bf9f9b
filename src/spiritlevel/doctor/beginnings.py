"""SL206, SL207: running statistics that are as they start, or were moved too early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding, Severity
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import (
    RECALIBRATE,
    at_init,
    counted,
    held,
    listed,
    momentum,
    running,
    varies,
)
from spiritlevel.doctor.twins import unfollowed

__all__: list[str] = []

DEVIATIONS = 8.0
"""Of the F ratio, by which layers must differ to be trained. Gammas and betas that are drawn at
random come from one distribution, and F is 1 with a standard deviation of sqrt(2 / (layers - 1)).
RepVGG's 61 layers have 1.5 as they are drawn, where the limit is 2.5; after 8 steps of training a
small ResNet's 9 have 8.8 (limit 5) and a GhostNet's 80 have 93 (limit 2.3). In two layers of 8
channels, chance exceeds it once in 300."""
INSPECTIONS = 3
"""Batches. Who inspects a model runs it once to three times; who trains it goes on."""
EXACT = 1e-6
"""Relative: float32 rounding of (1 - momentum)^k. Real data moves the variance by per cents."""


@rule(
    "SL206",
    "statistics-at-init",
    "warning",
    threads=(
        "hiwonjoon/tf-frrn#2",
        "LaurentMazare/tch-rs#628",
        "facebookresearch/maskrcnn-benchmark#267",
    ),
)
def statistics_at_init(rule: Rule, case: Case) -> Iterator[Finding]:
    """The running statistics are still 0 and 1 although the layer is trained.

    They were not saved, not loaded or not averaged with the weights, and eval() normalizes by
    nothing. A layer counts as trained where both gamma and beta differ over its channels, and the
    layers from each other by more than one random draw for all makes (the F ratio of gamma, of beta
    or of how they scatter): some networks start with random gammas and betas. Only told (info) is
    of layers that differ less, or are but one; of a layer that is kept in eval() while the model is
    in train(); and of one whose gamma and beta are as they start while others have counted batches,
    since it may be a branch that training does not use. Silent on frozen kinds, whose 0 and 1 may
    be meant.
    """
    told = unfollowed(case.model)  # by SL211
    norms = {path: norm for path, norm in case.batch_norms.items() if path not in told}
    still = {path: norm for path, norm in norms.items() if at_init(norm)}
    trained = [path for path, norm in still.items() if _trained(norm)]
    if trained:
        yield _not_loaded(rule, case, trained)
        return
    untouched = [path for path, norm in still.items() if not _trained(norm)]
    tracked = max(map(counted, norms.values()), default=0.0)
    if untouched and tracked > INSPECTIONS:
        path, more = listed(untouched)
        yield rule.found(
            path,
            f"has counted no batch{more}, and other batch norms up to {tracked:.0f}: training has "
            "not run it in train()",
            fix="nothing, if training does not use this branch; else see why it is not run",
            severity="info",
            layers=untouched,
            batches=0,
            others=tracked,
        )


@rule(
    "SL207",
    "touched-by-inspection",
    "warning",
    threads=(
        "TylerYep/torchinfo#21",
        "sksq96/pytorch-summary#67",
        "ultralytics/ultralytics#17469",
        "torch/torch7#707",
    ),
)
def touched_by_inspection(rule: Rule, case: Case) -> Iterator[Finding]:
    """The model is not trained, yet its running statistics have seen a batch.

    Something ran it in train(): a summary, a FLOP counter, a shape test, a trial in a constructor.
    What it was fed is in the running statistics. A warning where every variance of a layer is
    (1 - momentum)^k: the k batches were constant, zeros mostly. Else info. Not trained means that
    gamma and beta are as they start (1, or 0 for a zero-initialised branch, and 0) in every layer.
    Silent where that tells nothing: no gamma that could learn, gradients at hand, more than 3
    batches, or convergence towards the data after training with gammas frozen.
    """
    tracked = {p: n for p, n in case.batch_norms.items() if running(n) is not None}
    seen = max(map(counted, tracked.values()), default=0.0)
    if not 0 < seen <= INSPECTIONS or not _untrained(case):
        return
    touched = [path for path, norm in tracked.items() if counted(norm)]
    constant = [path for path in touched if _saw_constants(tracked[path])]
    path, more = listed(constant or touched)
    batches = counted(tracked[path])
    plural = "" if batches == 1 else "es"
    message = f"is not trained, but has counted {batches:.0f} batch{plural} in train(){more}"
    facts: dict[str, object] = {"layers": constant or touched, "batches": batches}
    severity: Severity = "info"
    if constant:
        share = _remains(tracked[path])
        message += f"; its running_var is (1 - momentum)^{batches:.0f} = {share:.4g} throughout: "
        message += "what it saw was constant"
        facts["running_var"] = share
        severity = "warning"
    yield rule.found(
        path,
        message,
        fix="reset_running_stats() on every batch norm, and inspect in eval()",
        severity=severity,
        **facts,
    )


def _not_loaded(rule: Rule, case: Case, trained: list[str]) -> Finding:
    ratio, limit = _apart(case.batch_norms)
    modes = {case.batch_norms[path].training for path in trained}
    kept_out = case.model.training and modes == {False}
    path, more = listed(trained)
    message = f"running_mean is 0 and running_var is 1{more}, and no batch was counted"
    if kept_out:
        message += "; the layer is in eval() while the model trains, which may be meant"
    elif ratio > limit:
        message += f", though gamma and beta are trained: F is {ratio:.3g} between layers, where "
        message += f"random ones are below {limit:.3g}"
    else:
        message += f". Gamma and beta differ over channels, but F is {ratio:.3g} between layers; "
        message += f"they may be as they were drawn, below {limit:.3g}"
    return rule.found(
        path,
        message,
        fix="load the buffers with the weights (state_dict(), not parameters()); without them, "
        + RECALIBRATE,
        severity="info" if kept_out or ratio <= limit else None,
        layers=trained,
        batches=0,
        f_ratio=ratio,
        threshold=limit,
    )


def _trained(norm: nn.Module) -> bool:
    return varies(held(norm, "weight"), 1.0) and varies(held(norm, "bias"), 0.0)


def _apart(norms: Mapping[str, nn.Module]) -> tuple[float, float]:
    """The largest F ratio between layers, and what random gammas and betas stay below."""
    found = []
    for name, start in (("weight", 1.0), ("bias", 0.0)):
        tensors = [held(norm, name) for norm in norms.values()]
        layers = [t.double().flatten() for t in tensors if t is not None and varies(t, start)]
        limit = 1 + DEVIATIONS * (2 / max(1, len(layers) - 1)) ** 0.5
        spreads = [(layer - layer.mean()).abs() for layer in layers]  # Levene's test
        found += [(_f_ratio(groups) / limit, limit) for groups in (layers, spreads)]
    largest, limit = max(found)
    return largest * limit, limit


def _f_ratio(groups: list[Tensor]) -> float:
    """The variance between means of groups, over that within; 0 where there is no telling."""
    apart, free = len(groups) - 1, sum(map(len, groups)) - len(groups)
    if apart < 1 or free < 1:
        return 0.0
    grand = torch.cat(groups).mean()
    between = sum(float(len(group) * (group.mean() - grand) ** 2) for group in groups) / apart
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / free
    return between / within if within else 0.0


def _untrained(case: Case) -> bool:
    """Whether gammas and betas, which could learn, have not, and no backward pass was made."""
    if any(parameter.grad is not None for parameter in case.model.parameters()):
        return False
    learners = [n for n in case.batch_norms.values() if _learns(getattr(n, "weight", None))]
    return bool(learners) and all(_as_it_starts(norm) for norm in case.batch_norms.values())


def _learns(weight: Tensor | None) -> bool:
    return isinstance(weight, Tensor) and weight.requires_grad


def _as_it_starts(norm: nn.Module) -> bool:
    weight, bias = held(norm, "weight"), held(norm, "bias")
    ones_or_zeros = weight is None or bool((weight == 1).all() or (weight == 0).all())
    return ones_or_zeros and (bias is None or bool((bias == 0).all()))


def _remains(norm: nn.Module) -> float:
    """Of a variance of 1, after as many batches of none as were counted."""
    share = momentum(norm)
    return 0.0 if share is None else (1.0 - share) ** counted(norm)


def _saw_constants(norm: nn.Module) -> bool:
    statistics, left = running(norm), _remains(norm)
    if statistics is None:
        return False
    return bool(((statistics[1] - left).abs() <= EXACT * max(left, EXACT)).all())
