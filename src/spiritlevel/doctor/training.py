"""SL401 to SL407: what the training loop did to the norms, from what the probe has counted."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import listed, momentum
from spiritlevel.doctor.watched import Watched, spoiled, typical, watched
from spiritlevel.probe.counting import Mode

__all__: list[str] = []

_DEFAULT = 0.1
"""torch's momentum."""
_TRAIN, _NO_GRAD = Mode(True, True), Mode(True, False)


@rule(
    "SL401",
    "validation-writes-statistics",
    "warning",
    needs=("probe",),
    threads=("princeton-vl/pytorch_stacked_hourglass#44", "weecology/DeepForest#477"),
)
def validation_writes_statistics(rule: Rule, case: Case) -> Iterator[Finding]:
    """Forward passes without gradients wrote the running statistics, as validation in train() does.

    Test data leak into what the model will use in eval(), and the validation score is that of batch
    statistics. Validation comes now and then; where most steps have such passes, they belong to the
    step, as when a GAN makes images or a model labels its own data, and it is info. Silent on a
    layer that only ever runs without gradients, such as a mean teacher's. A recalibration within
    the probe's block looks like validation: do it after the block.
    """
    both = [e for e in watched(case) if e.counts.writes[_NO_GRAD] and e.counts.writes[_TRAIN]]
    of_steps = [e for e in both if typical(e.counts.written_without_grad) > 0]
    found = [e for e in both if e not in of_steps]
    if of_steps:
        path, more = listed([each.path for each in of_steps])
        passes = typical(of_steps[0].counts.written_without_grad)
        yield rule.found(
            path,
            f"in most steps {passes} passes without gradients write its running statistics{more}: "
            "they count as much as those with gradients",
            fix="nothing, if they are fed as in training; else call eval() for them, or .detach()",
            severity="info",
            writes_without_grad=of_steps[0].counts.writes[_NO_GRAD],
            passes_per_step=passes,
            layers=[each.path for each in of_steps],
        )
    if found:
        path, more = listed([each.path for each in found])
        leaked, all_writes = found[0].counts.writes[_NO_GRAD], found[0].counts.writes.total()
        yield rule.found(
            path,
            f"{leaked:,} of {all_writes:,} passes that wrote its running statistics ran without "
            f"gradients{more}; wanted 0, as validation belongs into eval()",
            fix="call model.eval() before validation and model.train() after it",
            writes_without_grad=leaked,
            writes=all_writes,
            threshold=0,
            layers=[each.path for each in found],
        )


@rule(
    "SL402",
    "trained-in-eval",
    "error",
    needs=("probe",),
    threads=("pytorch/tutorials#1602", "wkentaro/pytorch-fcn#56", "facebookresearch/tacto#25"),
)
def trained_in_eval(rule: Rule, case: Case) -> Iterator[Finding]:
    """The optimizer stepped while the whole model was in eval(): train() was not called again.

    Dropout is off and batch norms go on with statistics of weights that have changed since. An
    error where steps in train() came first; a warning where no step was in train() and no batch was
    ever counted, so that eval() divides by 1. Silent where the norms are frozen: a model that is
    fine-tuned in eval() from the start with trained statistics, or whose norms do not learn.
    """
    counts = case.probe.counts
    layers = watched(case)
    learning = [e for e in layers if any(p.requires_grad for p in e.norm.parameters())]
    if not counts.all_eval_steps or not learning:
        return
    switched = counts.first_eval_step
    untrained = all(not _tracked(each.norm) for each in learning)
    if switched is None and not untrained:
        return
    when = "from the first on" if switched is None else f"the first of them step {switched:,}"
    yield rule.found(
        learning[0].path,
        f"{counts.all_eval_steps:,} of {counts.steps:,} steps were taken with the model in eval(), "
        f"{when}; wanted train() in every step"
        + (": no batch was ever counted" if switched is None else ""),
        fix="call model.train() at the start of each epoch, after validation",
        severity="warning" if switched is None else "error",
        steps_in_eval=counts.all_eval_steps,
        steps=counts.steps,
        first=switched,
        threshold=0,
    )


def _tracked(norm: object) -> bool:
    seen = getattr(norm, "num_batches_tracked", None)
    return isinstance(seen, Tensor) and int(seen) > 0


@rule(
    "SL403",
    "frozen-drifts",
    "warning",
    needs=("probe",),
    threads=(
        "pytorch/pytorch#86590",
        "pytorch/pytorch#66073",
        "pytorch/pytorch#10856",
        "chemprop/chemprop#952",
    ),
)
def frozen_drifts(rule: Rule, case: Case) -> Iterator[Finding]:
    """A norm without a learning parameter had its running statistics written in training steps.

    requires_grad=False freezes gamma and beta, not the statistics: those follow the new data as
    long as the layer is in train(), and train() on the model brings it back there. The frozen part
    is then no longer what it was. Silent where nothing learns, and on norms without parameters.
    """
    learns = any(p.requires_grad for p in case.model.parameters())
    found = [
        each
        for each in watched(case)
        if each.counts.writes[_TRAIN]
        and (own := list(each.norm.parameters()))
        and not any(p.requires_grad for p in own)
    ]
    if learns and found:
        path, more = listed([each.path for each in found])
        writes = found[0].counts.writes[_TRAIN]
        yield rule.found(
            path,
            f"none of its parameters learns, yet {writes:,} training passes wrote its running "
            f"statistics{more}; wanted 0",
            fix="put frozen norms into eval() after each model.train(), or exchange them: "
            "spiritlevel.convert(part, 'frozen')",
            writes=writes,
            threshold=0,
            layers=[each.path for each in found],
        )


@rule(
    "SL404",
    "recomputed-twice",
    "warning",
    needs=("probe",),
    threads=(
        "pytorch/pytorch#96136",
        "pytorch/pytorch#62471",
        "facebookresearch/fairscale#1035",
        "pfnet/pytorch-pfn-extras#117",
        "deepinsight/insightface#2053",
    ),
)
def recomputed_twice(rule: Rule, case: Case) -> Iterator[Finding]:
    """A checkpoint ran the layer again in the backward pass and wrote its statistics once more.

    Each batch counts twice, so that momentum m acts as 1 - (1 - m)^2: the average is over half as
    many batches. The cure is a smaller momentum, 1 - sqrt(1 - m).
    Silent where that has been done: where momentum acts as that of the norms outside the
    checkpoint, or as torch's 0.1.
    """
    layers = watched(case)
    meant = {_DEFAULT, *(momentum(e.norm) for e in layers if not e.counts.recomputed_writes)}
    found = [e for e in layers if e.counts.recomputed_writes and not _acts_as(e, meant)]
    if not found:
        return
    path, more = listed([each.path for each in found])
    m = momentum(found[0].norm)
    twice, once = found[0].counts.recomputed_writes, found[0].counts.writes[_TRAIN]
    acts, cure = "", "give the checkpointed norms the momentum 1 - sqrt(1 - m)"
    if m:
        acts = f": its momentum {m:g} acts as {1 - (1 - m) ** 2:.3g}"
        cure = f"give the checkpointed norms momentum={1 - math.sqrt(1 - m):.4g}"
    yield rule.found(
        path,
        f"{twice:,} writes of its running statistics by passes that a checkpoint ran again, beside "
        f"{once:,} others{more}{acts}; wanted 0",
        fix=f"{cure}, or leave norms out of the checkpointed part",
        recomputed_writes=twice,
        writes=once,
        momentum=m,
        threshold=0,
        layers=[each.path for each in found],
    )


def _acts_as(each: Watched, meant: set[float | None]) -> bool:
    m = momentum(each.norm)
    return m is not None and any(
        wanted and abs(1 - (1 - m) ** 2 - wanted) < 0.01 * wanted for wanted in meant
    )


@rule(
    "SL405",
    "written-on-moved-weights",
    "warning",
    needs=("probe",),
    threads=("davda54/sam#30",),
)
def written_on_moved_weights(rule: Rule, case: Case) -> Iterator[Finding]:
    """A step had further passes on moved weights, as SAM has, and they wrote the statistics, too.

    Half of the running average then belongs to weights that the model never keeps. Silent where
    the second pass writes nothing: momentum 0 for its time, or the norms in eval().
    """
    perturbed = case.probe.counts.perturbed
    if not perturbed:
        return
    found = [e for e in watched(case) if typical(e.counts.per_step) > 1 and _all_write(e)]
    if found:
        path, more = listed([each.path for each in found])
        passes = typical(found[0].counts.per_step)
        yield rule.found(
            path,
            f"{passes} passes a step wrote its running statistics{more}, and {perturbed:,} passes "
            "of the model ran on weights that had been moved within the step; wanted writes on the "
            "weights that are kept",
            fix="set momentum to 0 on the batch norms for all passes but one, and put it back "
            "after; with LBFGS freeze them",
            passes_per_step=passes,
            passes_on_moved_weights=perturbed,
            threshold=1,
            layers=[each.path for each in found],
        )


def _all_write(each: Watched) -> bool:
    passes = each.counts.forwards[_TRAIN]
    return passes > 0 and each.counts.writes[_TRAIN] == passes


@rule(
    "SL406",
    "statistics-of-micro-batches",
    "info",
    needs=("probe",),
    threads=(
        "pytorch/pytorch#46516",
        "andreped/GradientAccumulator#6",
        "andreped/GradientAccumulator#47",
        "mosaicml/composer#1207",
    ),
)
def statistics_of_micro_batches(rule: Rule, case: Case) -> Iterator[Finding]:
    """Gradients are accumulated over several passes, but each is normalised by itself.

    Accumulation makes the gradient that of the large batch, not the statistics: a norm still sees
    the micro-batch, with its noise. Silent where SL405 has the reason, and on one pass a step.
    """
    counts = case.probe.counts
    passes = typical(counts.per_step)
    found = [e for e in watched(case) if e.counts.writes[_TRAIN] and e.counts.batch_sizes]
    if passes > 1 and not counts.perturbed and typical(counts.per_backward) == 1 and found:
        path, more = listed([each.path for each in found])
        size = typical(found[0].counts.batch_sizes)
        yield rule.found(
            path,
            f"{passes} passes a step: it normalises {size:,} samples at a time{more}, while the "
            f"gradient is that of {passes * size:,}",
            fix="nothing, if a micro-batch is large enough; else a norm without batch statistics, "
            "such as spiritlevel.convert(model, 'group:8')",
            passes_per_step=passes,
            samples_normalised=size,
            samples_of_gradient=passes * size,
            layers=[each.path for each in found],
        )


@rule(
    "SL407",
    "overflow-in-skipped-step",
    "error",
    needs=("probe",),
    threads=("pytorch/pytorch#90342",),
)
def overflow_in_skipped_step(rule: Rule, case: Case) -> Iterator[Finding]:
    """A step was skipped after an overflow, and the running statistics kept it.

    A GradScaler keeps the weights, not the buffers: an infinite activation makes a running mean
    infinite or NaN, which no later batch mends. Training goes on, eval() is dead.
    """
    skipped = case.probe.counts.skipped
    found = [each.path for each in watched(case) if spoiled(each)]
    if skipped and found:
        path, more = listed(found)
        yield rule.found(
            path,
            f"its running statistics are not finite{more}, and {skipped:,} steps were skipped "
            "after an overflow; wanted finite numbers",
            fix="reset and recalibrate the statistics; keep a copy of the buffers from before "
            "each step, and put it back when the scale was lowered",
            skipped_steps=skipped,
            layers=found,
        )


@rule(
    "SL412",
    "buffers-sent-between-passes",
    "info",
    needs=("probe",),
    threads=(
        "pytorch/pytorch#22095",
        "pytorch/pytorch#65907",
        "pytorch/pytorch#110363",
        "XPixelGroup/BasicSR#278",
    ),
)
def buffers_sent_between_passes(rule: Rule, case: Case) -> Iterator[Finding]:
    """Several passes before one backward pass, under DistributedDataParallel that sends buffers.

    Before each pass rank 0's buffers are copied over the others', which some versions of torch
    refuse in the backward pass ("modified by an inplace operation"). Silent with
    forward_sync_buffers=False (broadcast_buffers=False in torch before 2.13).
    """
    wrapped = [
        m
        for m in (case.probe.model, *case.model.modules())
        if isinstance(m, DistributedDataParallel) and m.broadcast_buffers
    ]
    passes = typical(case.probe.counts.per_backward)
    layers = [each.path for each in watched(case)]
    if wrapped and layers and passes > 1:
        path, more = listed(layers)
        yield rule.found(
            path,
            f"{passes} passes before each backward pass, while DistributedDataParallel sends its "
            f"buffers before every one{more}",
            fix="DistributedDataParallel(model, forward_sync_buffers=False), in torch before 2.13 "
            "broadcast_buffers=False; or one pass over both batches together",
            passes_per_backward=passes,
            threshold=1,
        )
