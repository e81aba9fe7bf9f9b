"""SL501 to SL503, SL508: models that were converted, folded, fused or exported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from spiritlevel.doctor.against import Against, Pair, kind
from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import at_init, listed, momentum, running
from spiritlevel.doctor.structure import WEIGHTS
from spiritlevel.surgery.tracer import hooked

__all__: list[str] = []

SEVERE = 0.05
"""Of the largest value: above it a conversion is broken, below it an export may be coarse."""
SCALE = 1e-3
"""Relative change of a channel's output by another eps; a thousand times what rounding makes."""


@rule(
    "SL501",
    "orphan-activation",
    "error",
    threads=("pytorch/pytorch#187298", "huggingface/pytorch-image-models#1254"),
)
def orphan_activation(rule: Rule, case: Case) -> Iterator[Finding]:
    """A norm of torch's own class holds an activation that it never calls.

    torch.nn.SyncBatchNorm.convert_sync_batchnorm makes its own class of every subclass of batch
    norm. One that ended in an activation (timm's BatchNormAct2d) keeps it as a child, but torch's
    forward only normalizes: the activation is gone from the model. Silent where the child is an
    Identity or a Dropout of share 0, where somebody else calls it, and where the norm has hooks.
    """
    found: dict[str, tuple[str, nn.Module]] = {}
    for path, norm in case.norms.items():
        home = getattr(type(norm).forward, "__module__", "")
        if not home.startswith("torch.nn.") or hooked(norm) or "forward" in vars(norm):
            continue
        for name, child in norm.named_children():
            if not _does_nothing(child) and not case.structure.calls(child):
                found.setdefault(path, (name, child))
    if found:
        path, more = listed(list(found))
        name, child = found[path]
        yield rule.found(
            path,
            f"{type(case.norms[path]).__name__} holds {name} ({type(child).__name__}){more}, but "
            "its forward calls no child: what the layer did before is gone; wanted it to run",
            fix="convert the original model with timm.layers.convert_sync_batchnorm, or put "
            "the activation behind the norm: nn.Sequential(norm, act)",
            orphan=f"{path}.{name}",
            kind=type(child).__name__,
            calls=0,
            layers=list(found),
        )


def _does_nothing(child: nn.Module) -> bool:
    still = isinstance(child, nn.modules.dropout._DropoutNd) and not child.p
    return still or isinstance(child, nn.Identity)


@rule(
    "SL502",
    "outputs-differ",
    "error",
    needs=("reference", "example"),
    threads=(
        "pytorch/pytorch#187298",
        "pytorch/ao#4116",
        "pytorch/pytorch#118990",
        "pytorch/pytorch#180995",
        "facebookresearch/LeViT#22",
        "onnx/optimizer#106",
        "open-mmlab/mmcv#2581",
        "open-mmlab/mmpose#606",
        "https://discuss.pytorch.org/t/139598",
        "pytorch/pytorch#187444",
        "pytorch/pytorch#170762",
        "pytorch/pytorch#181696",
    ),
)
def outputs_differ(rule: Rule, case: Case) -> Iterator[Finding]:
    """With the reference's weights and statistics, the model gives other outputs in eval().

    A conversion, a fold or a compiler is to keep what a model computes. Both run on the same
    inputs; the finding names the first module whose output is neither the reference's there nor
    any later one of the reference's (as a convolution's is that a norm was folded into). An error
    above 5 % of the largest value, there or at the end, or where a sample changes its class, else a
    warning. Info where
    the two are to differ: norms of another kind, norms taken out by spiritlevel.convert, quantized
    layers. Silent where weights differ by more than a fold explains (training, averages), and where
    running statistics do, of which SL504 to SL506 speak. A norm that was folded and has stayed is
    told by its numbers: the layer before it has exactly the weights that folding makes.
    """
    both, against = case.comparison, case.against
    if both is None or both.agrees:
        return
    if against.folded_and_kept:
        layer, pair = against.folded_and_kept[0]
        yield rule.found(
            pair.path,
            f"normalizes twice{listed([p.path for _, p in against.folded_and_kept])[1]}: {layer} "
            "has the weights that folding this norm makes, and the norm is still there; outputs "
            f"differ by {both.relative:.2g} of the largest, wanted {both.tolerance:g} at most",
            fix=f"put nn.Identity() in the place of {pair.path}",
            relative=both.relative,
            threshold=both.tolerance,
            folded=layer,
        )
        return
    if against.other_weights:
        return
    if against.other_statistics and not against.gone:
        return
    meant = _meant(case, against)
    flips = both.agreement is not None and both.agreement < 1
    grave = flips or max(both.relative, both.at_first) > SEVERE
    if both.shapes is not None:
        told = f"gives {both.shapes[0]}, the reference {both.shapes[1]}"
    else:
        told = f"outputs differ by {both.relative:.2g} of the largest, wanted "
        told += f"{both.tolerance:g} at most"
        if both.agreement is not None:
            told += f"; {both.agreement:.0%} of {both.samples} samples keep their class"
        if both.first is not None:
            told += f". This is the first module to differ, by {both.at_first:.2g}"
    yield rule.found(
        both.first or "",
        f"{told}{f'. This is to be expected: {meant}' if meant else ''}",
        fix="nothing, if that is meant; else undo this step and check again"
        if meant
        else f"look at what was done to {both.first or 'the model'}; convert or fold the rest "
        "without it, and check again",
        severity="info" if meant else "error" if grave else "warning",
        relative=both.relative,
        threshold=both.tolerance,
        agreement=both.agreement,
        samples=both.samples,
        at_first=both.at_first,
    )


def _meant(case: Case, against: Against) -> str:
    """Why the outputs are to differ, if they are."""
    if against.other_kinds:
        pair, *rest = against.other_kinds
        more = f" and {len(rest)} more" if rest else ""
        return f"{pair.path}{more}, a {kind(pair.before)} before, is a {kind(pair.norm)} now"
    log = getattr(case.model, "spiritlevel_log", ())
    if against.gone and any(getattr(entry, "action", "") == "converted" for entry in log):
        return f"spiritlevel.convert has taken {len(against.gone)} norms out"
    if any("quantized" in type(module).__module__ for module in case.model.modules()):
        return "the model is quantized"
    if not against.weights:
        return "the two have no weight in common, by name and shape or in order"
    return ""


@rule(
    "SL503",
    "constants-changed",
    "warning",
    needs=("reference",),
    threads=("tensorflow/tensorflow#42605", "gzuidhof/nn-transfer#3", "qqwweee/keras-yolo3#451"),
)
def constants_changed(rule: Rule, case: Case) -> Iterator[Finding]:
    """A norm has another eps or momentum than that in its place in the reference.

    Libraries have other defaults (eps 1e-3 in Keras, 1e-5 in torch), which no checkpoint carries. A
    warning where another eps changes the output of some channel by 0.1 %, given the running
    variance. Info where it changes less, where there is no running variance, and for a momentum,
    which only further training reads. Norms are matched by path, or in order where no path is in
    both.
    """
    against = case.against
    eps: dict[tuple[Any, Any], list[Pair]] = {}
    shares: dict[tuple[Any, Any], list[Pair]] = {}
    for pair in against.pairs:
        if kind(pair.norm) != kind(pair.before):
            continue
        was, now = (getattr(norm, "eps", None) for norm in (pair.before, pair.norm))
        if isinstance(was, float) and isinstance(now, float) and was != now:
            eps.setdefault((was, now), []).append(pair)
        moves = all(hasattr(norm, "momentum") for norm in pair[1:])
        if moves and momentum(pair.before) != momentum(pair.norm) and running(pair.norm):
            shares.setdefault((momentum(pair.before), momentum(pair.norm)), []).append(pair)
    for (was, now), pairs in eps.items():
        path, more = listed([pair.path for pair in pairs])
        scales = [scale for pair in pairs if (scale := _rescaled(pair.norm, was, now)) is not None]
        scale = max(scales, default=0.0)
        yield rule.found(
            path,
            f"eps={now:g}, in the reference {was:g}{more}"
            + (f": some channel's output changes by {scale:.2%}" if scales else "")
            + f"; wanted {was:g}",
            fix=f"norm.eps = {was:g}",
            severity="warning" if scale > SCALE else "info",
            eps=now,
            eps_of_reference=was,
            largest_change=scale,
            threshold=SCALE,
            layers=[pair.path for pair in pairs],
        )
    for (was, now), pairs in shares.items():
        path, more = listed([pair.path for pair in pairs])
        yield rule.found(
            path,
            f"momentum={now}, in the reference {was}{more}: further training follows other "
            "averages",
            fix=f"norm.momentum = {was}, unless it was changed on purpose",
            severity="info",
            momentum=now,
            momentum_of_reference=was,
            layers=[pair.path for pair in pairs],
        )


def _rescaled(norm: nn.Module, was: float, now: float) -> float | None:
    """By how much another eps scales the channel that it scales most; None where nothing tells."""
    statistics = running(norm)
    if statistics is None or at_init(norm):
        return None
    var = statistics[1].clamp_min(0.0)
    return float((((var + was) / (var + now)).sqrt() - 1).abs().max())


@rule(
    "SL508",
    "not-foldable",
    "info",
    needs=("example",),
    threads=(
        "pytorch/ao#4116",
        "pytorch/pytorch#118990",
        "open-mmlab/mmpose#606",
        "https://discuss.pytorch.org/t/139598",
        "chr5tphr/zennit#185",
    ),
)
def not_foldable(rule: Rule, case: Case) -> Iterator[Finding]:
    """A batch norm cannot be folded into the layer before it, though a tool may try.

    Folding writes the norm into the weights of the layer that feeds it. Where something else reads
    that layer's output, too, it would get normalized values. And a Linear layer whose output is
    (N, L, features) has features last, while the norm takes axis 1 for channels: where L is as
    large, torch's fuse_linear_bn_eval folds without an error, and wrongly. Only told where data
    shows that the model runs.
    """
    for path, norm in case.batch_norms.items():
        if norm._buffers.get("running_mean") is None:
            continue
        why = _shared_output(case, norm) or _features_last(case, path, norm)
        if why:
            yield rule.found(
                path,
                f"cannot be folded into {why}",
                fix="leave it out of folding; check(folded, reference=model, example=x) afterwards",
                largest=1,
                threshold=1,
            )


def _shared_output(case: Case, norm: nn.Module) -> str:
    for chain in case.structure.before(norm):
        layer = chain[0].module if chain else None
        if layer is None or not isinstance(layer, WEIGHTS):
            continue
        others = [s for s in case.structure.readers(layer) if s.module is not norm]
        if others and case.structure.calls(layer) == 1 and case.structure.sure(layer):
            called = ", ".join(step.path or step.name for step in others[:3])
            return f"{chain[0].path}: {called} reads its output, too ({len(others) + 1} readers)"
    return ""


def _features_last(case: Case, path: str, norm: Any) -> str:
    layer = case.data.layers.get(path) if case.data is not None else None
    fed = None if layer is None else layer.features_last
    before = None if fed is None else fed.source
    linear = None if before is None else dict(case.model.named_modules()).get(before)
    if not isinstance(linear, nn.Linear) or linear.out_features != norm.num_features:
        return ""
    return f"{before}: its output is (N, L, {linear.out_features}), of which the norm takes axis 1"
