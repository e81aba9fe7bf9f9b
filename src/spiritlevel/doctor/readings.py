"""SL408 to SL413: what the norms were fed and how they learned, from what the probe has read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from torch import Tensor, nn

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import SYNCED, listed
from spiritlevel.doctor.watched import Watched, spoiled, typical, watched
from spiritlevel.probe.counting import OTHER

__all__: list[str] = []

_SHIFT = 0.5
"""Deviations between the means of passes: in eval() neither is centred, then."""
_NOISE = 4.0
"""By chance the means of two passes of n samples are about one deviation / sqrt(n) apart."""
_FEW = 16
"""Values a channel: with n of them the variance is off by sqrt(2 / n), here a third."""
_DEGENERATE = 2
"""Of two values one becomes +1 and one -1, whatever they were."""
_LEARNED = 20
"""Steps after which a gamma that began at 0 has moved, if any gradient reaches it."""


@rule(
    "SL408",
    "passes-of-different-kinds",
    "warning",
    needs=("probe",),
    threads=(
        "carpedm20/DCGAN-tensorflow#266",
        "soumith/ganhacks#9",
        "eriklindernoren/PyTorch-GAN#135",
    ),
)
def passes_of_different_kinds(rule: Rule, case: Case) -> Iterator[Finding]:
    """The passes of one step bring a norm different distributions, such as real and made images.

    Each pass is normalised with its own statistics, but the running ones are an average of all:
    eval() uses moments that no pass ever had. Decided by how far apart the passes' means are at
    most, in deviations, the median over channels and sampled steps. Silent where the passes
    are alike, as in gradient accumulation, and where so few samples differ by chance.
    """
    found: list[tuple[str, float, float]] = []
    for each in watched(case):
        shifts = [s for s in _of(case, each, "pass_shift") if math.isfinite(s)]
        size = typical(each.counts.batch_sizes)
        limit = max(_SHIFT, _NOISE / math.sqrt(max(size, 1)))
        if shifts and each.counts.writes.total() and median(shifts) > limit:
            found.append((each.path, median(shifts), limit))
    if found:
        path, more = listed([path for path, *_ in found])
        _, shift, limit = found[0]
        yield rule.found(
            path,
            f"the passes of a step differ by {shift:.2g} deviations in their means{more}; wanted "
            f"{limit:.2g} at most",
            fix="put both kinds into one batch, or give each kind a norm of its own, or take one "
            "without running statistics: spiritlevel.convert(model, 'group:8')",
            shift=shift,
            threshold=limit,
            layers=[path for path, *_ in found],
        )


@rule(
    "SL409",
    "tiny-batches",
    "error",
    needs=("probe",),
    threads=("MCG-NKU/SCNet#8", "VinAIResearch/ISBNet#12", "fastai/fastai#1352"),
)
def tiny_batches(rule: Rule, case: Case) -> Iterator[Finding]:
    """A norm trained on very few values a channel, so that its statistics are mostly noise.

    Of two values one becomes +1 and the other -1: the scale of the input is lost, an error where
    that is the rule. Below 16 the variance is off by more than a third. A single small batch among
    larger ones is info. Silent on one position with a large batch, and on frozen norms.
    """
    usual: dict[bool, list[tuple[str, int]]] = {}
    rare: list[tuple[str, int, int]] = []
    for each in watched(case):
        sizes = {n: times for n, times in _values(each).items() if n != OTHER}
        if not sizes or isinstance(each.norm, SYNCED):
            continue
        common, least = max(sizes, key=lambda n: sizes[n]), min(sizes)
        if common < _FEW:
            usual.setdefault(common <= _DEGENERATE, []).append((each.path, common))
        elif least < _FEW:
            rare.append((each.path, least, sizes[least]))
    for degenerate, layers in usual.items():
        path, more = listed([path for path, _ in layers])
        count = layers[0][1]
        yield rule.found(
            path,
            f"trained on {count} values a channel{more}; wanted {_FEW} or more"
            + (": of two values, one becomes +1 and one -1" if degenerate else ""),
            fix="a larger batch, or a norm without batch statistics: "
            "spiritlevel.convert(model, 'group:8')",
            severity="error" if degenerate else "warning",
            values=count,
            threshold=_FEW,
            layers=[path for path, _ in layers],
        )
    if rare:
        path, more = listed([path for path, *_ in rare])
        _, least, times = rare[0]
        yield rule.found(
            path,
            f"{times:,} training passes had {least} values a channel, fewer than the {_FEW} wanted"
            f"{more}",
            fix="DataLoader(..., drop_last=True) leaves out an incomplete last batch",
            severity="info",
            values=least,
            passes=times,
            threshold=_FEW,
            layers=[path for path, *_ in rare],
        )


def _values(each: Watched) -> dict[int, int]:
    """Passes by the values that were normalised together; ghost batches are smaller ones."""
    group = getattr(each.norm, "group_size", None)
    size = typical(each.counts.batch_sizes)
    if not group or size <= group:
        return dict(each.counts.values)
    return {n * group // size if n != OTHER else n: t for n, t in each.counts.values.items()}


@rule(
    "SL410",
    "decayed-scale",
    "info",
    needs=("probe",),
    threads=("pytorch/pytorch#1402", "ultralytics/yolov5#4104"),
)
def decayed_scale(rule: Rule, case: Case) -> Iterator[Finding]:
    """Weight decay acts on gamma and beta of norms.

    It pulls gamma to 0, not to 1. The literature is divided (Summers and Dinneen 2020 find it
    helps in some networks), so this is only told.
    """
    groups = getattr(case.probe.optimizer, "param_groups", ())
    decay = {id(p): g.get("weight_decay", 0.0) for g in groups for p in g["params"]}
    found = {
        path: max(decay.get(id(p), 0.0) for p in own)
        for path, norm in case.norms.items()
        if (own := [p for p in norm.parameters(recurse=False) if p.requires_grad])
    }
    decayed = {path: value for path, value in found.items() if value > 0}
    if decayed:
        path, more = listed(list(decayed))
        yield rule.found(
            path,
            f"the optimizer decays its gamma and beta by {decayed[path]:g}{more}",
            fix="give norms and biases a parameter group with weight_decay=0",
            weight_decay=decayed[path],
            threshold=0.0,
            layers=list(decayed),
        )


@rule(
    "SL411",
    "scale-never-moved",
    "warning",
    needs=("probe",),
    threads=(
        "tensorpack/tensorpack#420",
        "google-deepmind/sonnet#185",
        "facebookresearch/simsiam#28",
    ),
)
def scale_never_moved(rule: Rule, case: Case) -> Iterator[Finding]:
    """All of a norm's gammas are still exactly 0 after training: the layer gives a constant.

    A zero at the start is intended for the last norm of a residual branch, which learns its way out
    of it. Here no gradient reached it, or it was never handed to the optimizer. Silent on norms
    that are frozen, and before 20 steps.
    """
    steps = case.probe.counts.steps
    found = [
        each.path
        for each in watched(case)
        if steps >= _LEARNED and each.counts.forwards and _zero_and_learning(each.norm)
    ]
    if found:
        path, more = listed(found)
        yield rule.found(
            path,
            f"every gamma is exactly 0 after {steps:,} steps{more}; wanted some that have learned",
            fix="hand its parameters to the optimizer, and see that a gradient reaches them",
            steps=steps,
            largest_gamma=0.0,
            threshold=_LEARNED,
            layers=found,
        )


def _zero_and_learning(norm: nn.Module) -> bool:
    weight = getattr(norm, "weight", None)
    return isinstance(weight, Tensor) and weight.requires_grad and not weight.detach().any()


@rule(
    "SL413",
    "not-finite-in-training",
    "error",
    needs=("probe",),
    threads=("pytorch/pytorch#1206", "facebookresearch/SparseConvNet#190"),
)
def not_finite_in_training(rule: Rule, case: Case) -> Iterator[Finding]:
    """A norm's input held NaN or infinity in a training step that was read.

    Named is the first layer of the first such step: what lies before it made them. One channel of
    such values makes its running statistics infinite or NaN for good. Info where a GradScaler
    skipped steps and the statistics are finite: it is looking for the largest scale.
    """
    readings = case.probe.readings
    bad = [
        (step, each)
        for each in watched(case)
        for step, channels in zip(readings.steps, _of(case, each, "non_finite"), strict=True)
        if channels > 0
    ]
    if not bad:
        return
    first = min(step for step, _ in bad)
    layers = [each for step, each in bad if step == first]
    searching = case.probe.counts.skipped > 0 and not any(map(spoiled, watched(case)))
    path, more = listed([each.path for each in layers])
    channels = int(_of(case, layers[0], "non_finite")[readings.steps.index(first)])
    yield rule.found(
        path,
        f"{channels} channels of its input were not finite in step {first:,}{more}; wanted 0",
        fix="look at what comes before it in that step: a division, an exponent, a learning rate",
        severity="info" if searching else "error",
        step=first,
        channels=channels,
        threshold=0,
        layers=[each.path for each in layers],
    )


def _of(case: Case, each: Watched, metric: str) -> list[float]:
    return list(case.probe.readings.of(each.seen_as, metric))
