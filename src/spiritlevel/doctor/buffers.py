"""SL202, SL204, SL205, SL208, SL210: running statistics that are missing or broken."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import RECALIBRATE, held, listed, running
from spiritlevel.surgery.statistics import type_name

__all__: list[str] = []


@rule(
    "SL202",
    "no-running-statistics",
    "info",
    threads=(
        "yaodongyu/TRADES#3",
        "yanx27/GACNet#8",
        "pytorch/pytorch#75252",
        "pytorch/pytorch#52867",
        "pytorch/pytorch#49229",
        "open-edge-platform/anomalib#2909",
        "microsoft/onnxruntime#26584",
        "microsoft/onnxscript#1791",
    ),
)
def no_running_statistics(rule: Rule, case: Case) -> Iterator[Finding]:
    """A batch norm has no running statistics, so eval() takes the batch's, too.

    What the model says of a sample then depends on the samples beside it, in eval() and in an
    exported file. It may be meant (test-time adaptation, some generators), so this is only told.
    Silent on instance norms, whose statistics are each sample's own.
    """
    without = [
        path
        for path, norm in case.batch_norms.items()
        if hasattr(norm, "running_mean")
        and norm.running_mean is None
        and getattr(norm, "running_var", None) is None
    ]
    if without:
        path, more = listed(without)
        yield rule.found(
            path,
            f"has no running statistics{more}: in eval() it takes the batch's, so an output "
            "depends on the samples beside it",
            fix="build it with track_running_stats=True; else keep the batch size of training",
            norms=len(without),
            layers=without,
        )


@rule(
    "SL204",
    "non-finite-buffers",
    "error",
    threads=(
        "pytorch/pytorch#1206",
        "facebookresearch/SparseConvNet#190",
        "facebookresearch/SparseConvNet#105",
        "torch/nn#1271",
        "pytorch/pytorch#60624",
    ),
)
def non_finite_buffers(rule: Rule, case: Case) -> Iterator[Finding]:
    """A running mean or variance holds NaN or infinity, and eval() gives NaN or constants.

    One batch is enough: an infinite activation, or a batch of one value a channel, whose unbiased
    variance is 0/0. The average keeps it forever.
    """
    for path, norm in _all(case).items():
        statistics = running(norm)
        if statistics is None:
            continue
        broken = ~(statistics[0].isfinite() & statistics[1].isfinite())
        if count := int(broken.sum()):
            yield rule.found(
                path,
                f"the running statistics of {count} of {broken.numel()} channels are NaN or "
                "infinite; wanted finite numbers",
                fix=f"find the batch that does it, then reset_running_stats() and {RECALIBRATE}",
                channels=count,
                of=broken.numel(),
                first=int(broken.flatten().nonzero()[0]),
            )


@rule(
    "SL205",
    "negative-variance",
    "error",
    threads=(
        "timgaripov/swa#7",
        "timgaripov/swa#8",
        "pytorch/pytorch#60624",
        "pytorch/pytorch#106605",
    ),
)
def negative_variance(rule: Rule, case: Case) -> Iterator[Finding]:
    """A running variance is below 0, and eval() takes the root of a negative number.

    No batch can do this. It is arithmetic on checkpoints: extrapolated or subtracted averages,
    or memory that was overwritten.
    """
    for path, norm in _all(case).items():
        statistics = running(norm)
        if statistics is None:
            continue
        var = statistics[1]
        if count := int((var < 0).sum()):
            least = float(var.nan_to_num(0.0).min())
            yield rule.found(
                path,
                f"the running variance of {count} of {var.numel()} channels is negative, "
                f"{least:.3g} at the least; wanted 0 or more",
                fix=f"leave buffers out of the arithmetic on checkpoints, then {RECALIBRATE}",
                channels=count,
                of=var.numel(),
                least=least,
                threshold=0.0,
            )


@rule(
    "SL208",
    "batches-uncounted",
    "error",
    threads=(
        "pytorch/pytorch#8430",
        "pytorch/pytorch#8481",
        "pytorch/pytorch#5883",
        "pytorch/pytorch#110850",
        "mapillary/inplace_abn#130",
    ),
)
def batches_uncounted(rule: Rule, case: Case) -> Iterator[Finding]:
    """A batch norm has running statistics, but no num_batches_tracked.

    Files and pickles of before PyTorch 0.4.1 have none. With momentum=None the new batch's share is
    one over the count; without a count it is 0, and the statistics never move: an error. So it is
    where the attribute is not there at all, since torch's forward then raises in train(). With a
    momentum and a count of None all goes on as it should: info. Silent on other libraries' classes.
    """
    for path, norm in case.batch_norms.items():
        if not isinstance(norm, _BatchNorm) or running(norm) is None:
            continue
        missing = not hasattr(norm, "num_batches_tracked")
        if not norm.track_running_stats or not (missing or norm.num_batches_tracked is None):
            continue
        what = "has no attribute num_batches_tracked" if missing else "num_batches_tracked is None"
        if missing:
            follows = "train() raises AttributeError"
        elif norm.momentum is None:
            follows = "with momentum=None the running statistics never move"
        else:
            follows = f"with momentum={norm.momentum:g} nothing needs it"
        yield rule.found(
            path,
            f"{what}; {follows}",
            fix='norm.register_buffer("num_batches_tracked", torch.tensor(0))',
            severity="error" if missing or norm.momentum is None else "info",
            momentum=norm.momentum,
            counters=0,
            threshold=1,
        )


@rule(
    "SL210",
    "counter-not-integer",
    "warning",
    threads=("espnet/espnet#2283", "secretflow/secretflow#1009"),
)
def counter_not_integer(rule: Rule, case: Case) -> Iterator[Finding]:
    """num_batches_tracked is not an integer: it went through an average or a cast.

    An average over checkpoints or clients made it a fraction. Half precision stops counting at
    2048 (bfloat16 at 256), so with momentum=None all later batches weigh the same; other code fails
    on "Float can't be cast to Long".
    """
    wrong = {}
    for path, norm in case.batch_norms.items():
        count = held(norm, "num_batches_tracked")
        if count is not None and (count.dtype.is_floating_point or count.dtype == torch.bool):
            wrong[path] = count
    if wrong:
        path, more = listed(list(wrong))
        count = wrong[path]
        yield rule.found(
            path,
            f"num_batches_tracked is {float(count):g} in {type_name(count.dtype)}{more}; wanted an "
            "integer type",
            fix="average floating-point tensors only, and take the counter of one of the models",
            layers=list(wrong),
            count=float(count),
            dtype=str(count.dtype),
        )


def _all(case: Case) -> dict[str, nn.Module]:
    """Frozen kinds and instance norms, too: theirs can be broken alike."""
    return {**case.norms, **case.batch_norms}
