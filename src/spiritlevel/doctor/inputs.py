"""Rules on what batch norms are fed: over which axes, and whether it is sound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.drift import harmless, middle
from spiritlevel.doctor.finding import Finding, Severity
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.lent.pooled import Pooled
from spiritlevel.probe.evidence import Layer

__all__: list[str] = []

PAD_MEAN, PAD_VAR = 0.25, math.log(1.5)
"""What padding may move: a quarter of a deviation, or half of the variance."""
APART, APART_RATIO = 0.5, 20.0
"""Of features whose steps were normalized: a share of variance, a ratio of deviations. Normalized
features have 0 and 1; those of a random Linear layer 0.24 and 3.7, and steps of a
nearly constant series, mixed by one, up to 0.1 and 13."""
ALIKE, ALIKE_RATIO = 0.1, 2.0
"""Of the steps of a sequence, before the norm: they are of one kind, as channels are not."""
EPS_SHARE = 0.1
"""eps over variance: the output has 5 % less deviation than one."""
EPS_MUCH = 1.0
"""The output has less than 0.71 of a deviation."""
DROPOUT_RATIO = 0.8
"""Variance in eval mode over that in training: the output shrinks to 0.9."""


# ---- over which axes -----------------------------------------------------------------------------


@rule(
    "SL308",
    "padding-in-statistics",
    "warning",
    needs=("data",),
    threads=("pytorch/pytorch#70529", "pytorch/pytorch#25910", "tensorflow/tensorflow#30161"),
)
def padding_in_statistics(rule: Rule, case: Case) -> Iterator[Finding]:
    """Sequences are padded, and the padding is counted in mean and variance.

    Then a sequence's output depends on how long the longest of its batch is, and the running
    statistics on how lengths were mixed.

    For inputs (N, C, L) the positions at the end that are exactly repeated are taken as padding.
    Told where leaving them out moves the mean by a quarter of a deviation or the variance by a half
    of itself, in the middle channel. Silent on images, and on layers fed (N, L, features).
    """
    for path, layer in case.data.layers.items():
        if (
            layer.train is None
            or layer.train.padding is None
            or layer.features_last
            or layer.frozen
        ):
            continue
        padding, fed = layer.train.padding, layer.train.pooled
        real = padding.without
        shift = middle((fed.mean - real.mean).abs() / (real.var + layer.eps).sqrt())
        scale = middle(((fed.var + layer.eps) / (real.var + layer.eps)).log().abs())
        if shift > PAD_MEAN or scale > PAD_VAR:
            yield rule.found(
                path,
                f"{padding.share:.0%} of the positions are padding; it moves the mean by "
                f"{shift:.2f} deviations (at most {PAD_MEAN}) and the variance by a factor of "
                f"{math.exp(scale):.2f} (at most {math.exp(PAD_VAR):.2f})",
                fix="normalize the real positions only, x[mask]; or LayerNorm, which takes each "
                "position alone",
                shift=shift,
                threshold=PAD_MEAN,
                log_variance=scale,
                log_variance_threshold=PAD_VAR,
                padded=padding.share,
            )


@rule(
    "SL309",
    "norm-over-time-axis-seen",
    "warning",
    needs=("data",),
    threads=(
        "ruotianluo/self-critical.pytorch#44",
        "pytorch/pytorch#7577",
        "pytorch/pytorch#71366",
        "https://discuss.pytorch.org/t/91364",
    ),
)
def norm_over_time_axis_seen(rule: Rule, case: Case) -> Iterator[Finding]:
    """A BatchNorm1d gets (N, L, features) and normalizes each step, not each feature.

    torch takes axis 1 as channels. A Linear gives features on the last axis, so with as many
    channels as steps nothing raises: features of different scales stay so, and each step of the
    sequence has its own mean removed.

    Told where the very output of a Linear, Embedding, LayerNorm, attention or recurrent layer, of
    three axes, arrives at a batch norm, activations and dropout in between. A Linear may as well
    mix the steps of (N, channels, L), and the norm is right; so it is a warning only where steps
    are alike before the norm, while features come out of it apart: half of the variance is between
    their means, or their deviations have a ratio of 20. Info otherwise. Silent behind a
    transposition.
    """
    for path, layer in case.data.layers.items():
        fed = layer.features_last
        if fed is None:
            continue
        steps = len(fed.steps.mean)
        (between, ratio), (by_step, step_ratio) = map(_apart, (fed.features, fed.steps))
        off = between > APART or ratio > APART_RATIO
        alike = by_step < ALIKE and step_ratio < ALIKE_RATIO
        yield rule.found(
            path,
            f"gets (N, {steps}, {len(fed.features.mean)}) from {fed.source} and normalizes the "
            f"{steps} of axis 1; after it {between:.0%} of the variance is between the means on "
            f"the last axis (at most {APART:.0%}), and deviations there a ratio of {ratio:.1f} "
            f"(at most {APART_RATIO:g}); on axis 1, before it, {by_step:.0%} and {step_ratio:.1f}",
            fix="norm(x.transpose(1, 2)).transpose(1, 2), num_features = features; or LayerNorm"
            + ("" if off and alike else "; nothing, if axis 1 holds the channels"),
            severity="warning" if off and alike else "info",
            between=between,
            threshold=APART,
            ratio=ratio,
            ratio_threshold=APART_RATIO,
            between_steps=by_step,
            ratio_of_steps=step_ratio,
            source=fed.source,
        )


def _apart(each: Pooled) -> tuple[float, float]:
    """The share of the variance that is between means, and the ratio of deviations, tails cut."""
    between, within = float(each.mean.var(correction=0)), float(each.var.mean())
    low, high = each.std.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    share = between / (between + within) if between + within else 0.0
    return share, high / low if low else (1.0 if not high else math.inf)


# ---- whether it is sound -------------------------------------------------------------------------


@rule(
    "SL310",
    "non-finite-input",
    "error",
    needs=("data",),
    threads=("pytorch/pytorch#1206", "facebookresearch/SparseConvNet#190"),
)
def non_finite_input(rule: Rule, case: Case) -> Iterator[Finding]:
    """A norm is fed NaN or infinity.

    In training one such value makes the running statistics NaN for good, and eval mode with them.

    Named is the first norm that is hit in its batch; it says whether the batch itself holds such
    values. What eval mode makes of broken buffers is left to SL204.
    """
    broken = any(_broken(layer) for layer in case.data.layers.values())
    hits = [hit for hit in case.data.nonfinite if hit.mode == "train" or not broken]
    hits.sort(key=lambda hit: (hit.mode != "train", hit.batch))
    for path in dict.fromkeys(hit.path for hit in hits):
        own = [hit for hit in hits if hit.path == path]
        first = own[0]
        batches = len({hit.batch for hit in own})
        source = "the batch itself holds some" if first.given else "the batch itself is finite"
        yield rule.found(
            path,
            f"{first.values} values of its input are NaN or infinite in batch {first.batch + 1}, "
            f"in {first.mode}; so in {batches} of {len(case.data.sizes)} batches (expected: 0); "
            f"{source}",
            fix="clean the data"
            if first.given
            else "look at the layers before it: overflow in "
            "half precision, division by zero, log of zero, diverged weights",
            values=first.values,
            threshold=0,
            batches=batches,
        )


def _broken(layer: Layer) -> bool:
    held = (layer.running_mean, layer.running_var)
    return any(isinstance(each, Tensor) and not bool(each.isfinite().all()) for each in held)


@rule(
    "SL311",
    "eps-dominates",
    "warning",
    needs=("data",),
    threads=("tensorflow/tensorflow#42605", "qqwweee/keras-yolo3#451"),
)
def eps_dominates(rule: Rule, case: Case) -> Iterator[Finding]:
    """eps is not small against the variance of the input, so the output is not normalized.

    The layer divides by sqrt(variance + eps). With an eps of the variance's size the output has a
    deviation of 0.71, and how it scales depends on the scale of the input after all.

    Measured over all batches in training mode, in the middle channel, channels that are constant
    left out. A warning where eps is above the variance of a trained layer, info from a tenth.
    """
    for path, layer in case.data.layers.items():
        if layer.train is None or layer.frozen:
            continue
        var = layer.train.pooled.var
        var = var[var > 1e-4 * layer.eps]  # a constant channel has no variance for eps to dominate
        if not len(var):
            continue
        ratio = middle(layer.eps / var)
        if ratio > EPS_SHARE:
            much = ratio > EPS_MUCH and bool(layer.batches_tracked) and not harmless(case)
            yield rule.found(
                path,
                f"eps {layer.eps:g} is {ratio:.2g} of the input's variance in the middle channel "
                f"(at most {EPS_SHARE}): the output has a deviation of "
                f"{math.sqrt(1 / (1 + ratio)):.2f}",
                fix="a smaller eps, as 1e-5; or inputs of a larger scale",
                severity="warning" if much else "info",
                ratio=ratio,
                threshold=EPS_MUCH if much else EPS_SHARE,
            )


@rule(
    "SL312",
    "dropout-variance-shift",
    "warning",
    needs=("data",),
    threads=("https://arxiv.org/abs/1801.05134",),
)
def dropout_variance_shift(rule: Rule, case: Case) -> Iterator[Finding]:
    """Dropout before a batch norm gives its input another variance in training than in eval mode.

    Dropout keeps the mean and adds variance. The running variance learns that of training, in eval
    mode the input has less, and the output is too small (Li et al. 2018, section 3).

    A few batches are run in training mode with all dropout on, then off: told is a layer whose
    input loses more than a fifth of its variance, in the middle channel. Info before the first
    training step, and where targets show that eval mode loses nothing.
    """
    for path, layer in case.data.layers.items():
        if layer.without_dropout is None or layer.frozen:
            continue
        on, off = layer.without_dropout
        ratio = middle((off.var + layer.eps) / (on.var + layer.eps))
        if ratio < DROPOUT_RATIO:
            severity: Severity = "warning"
            if layer.batches_tracked == 0 or harmless(case):
                severity = "info"
            evidence: dict[str, Any] = {"ratio": ratio, "threshold": DROPOUT_RATIO}
            yield rule.found(
                path,
                f"without dropout its input has {ratio:.2f} of the variance that it has with it "
                f"(at least {DROPOUT_RATIO}), in the middle channel",
                fix="put dropout behind the last batch norm, or recalibrate with dropout off",
                severity=severity,
                **evidence,
            )
