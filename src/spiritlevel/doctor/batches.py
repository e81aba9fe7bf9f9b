"""Rules on batches: how they are drawn, and what a sample's batch-mates do to it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.drift import fits, middle, misses
from spiritlevel.doctor.finding import Finding, Severity
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.probe.independence import Spread

__all__: list[str] = []

LEAST_BATCHES = 8
"""Below it a spread between batches is not told from chance with any certainty."""
CHANCE = 1e-6
"""That batches drawn at random spread so, over all channels and layers."""
ALIKE = 0.1
"""Share of the variance of samples' means that is between batches, in the middle channel. Digits
in the order in which their writers wrote them have 0.05."""
TWO_KINDS = 0.8
"""Share of the variance between batches that splitting them in two explains."""
SWITCHES = 3
"""Changes of kind, one after another: batches in order by class change once a class."""
ONE_CLASS = 0.9
"""Share of the samples of a batch that are of its largest class."""


@rule(
    "SL302",
    "depends-on-batch-mates",
    "error",
    needs=("data",),
    threads=("yanx27/GACNet#8", "yaodongyu/TRADES#3"),
)
def depends_on_batch_mates(rule: Rule, case: Case) -> Iterator[Finding]:
    """In eval mode the output of a sample depends on the other samples in its batch.

    Some layer takes the statistics of the batch also at test time, so accuracy depends on the batch
    size and on who is in it, and a single image gives another answer than the same one in a batch.

    Half of a batch is run twice in eval mode, in batches of one size, with other batch-mates; told
    is an output that moves by more than rounding, and the first module that moves. A warning where
    that is a batch norm built without running statistics, which may be meant; info where it is no
    batch norm.
    """
    mates = case.data.mates
    if mates is None or not mates.depends:
        return
    layer = case.data.layers.get(mates.module)
    meant = layer is not None and layer.running_mean is None
    severity: Severity = "info" if layer is None else "warning" if meant else "error"
    flipped = ""
    if mates.flipped:
        flipped = f", {mates.flipped:.0%} of {mates.samples} samples get another largest output"
    where = f", first in {mates.module}" if mates.module else ""
    yield rule.found(
        mates.module,
        f"with other batch-mates outputs in eval() change by up to {mates.change:.2g} of the "
        f"largest (rounding: {mates.rounding:.2g}){flipped}{where}",
        fix="build it with track_running_stats=True and train it so; let train(False) reach it",
        severity=severity,
        change=mates.change,
        threshold=mates.rounding,
        flipped=mates.flipped,
        samples=mates.samples,
    )


# ---- how batches are drawn -----------------------------------------------------------------------


@rule(
    "SL305",
    "ordered-batches",
    "warning",
    needs=("data",),
    threads=("torch/nn#308", "openpifpaf/openpifpaf#308", "megvii-model/SinglePathOneShot#4"),
)
def ordered_batches(rule: Rule, case: Case) -> Iterator[Finding]:
    """Samples of a batch are alike: batches are in some order, by class for instance.

    Then each batch has its own mean and too small a variance. In training a layer removes what its
    batch has in common, in eval mode it does not, and the running mean is that of the last batches.

    In eval mode a sample's mean does not depend on its batch-mates. So if samples come to batches
    by chance, the variance between batches over that within follows Fisher's F. Told is a layer
    with a chance below one in a million over all channels and layers, and over a tenth of the
    variance between batches in the middle channel; with fewer than 8 batches as info, with how many
    more would decide. Info, too, where it is not shown that training draws such batches: where the
    running statistics of a trained model fit all batches together; where a loader in the order of
    its data set has more batches than were read; and where the model is in eval(), unless all
    batches were read and its running statistics are half a deviation from them. Targets decide
    nothing here, since batch statistics do badly on such batches themselves.
    """
    found = _gathered(case)
    if found is None:
        return
    path, spread, share = found
    classes = _largest_class(case)
    if (classes is None or classes < ONE_CLASS) and _two_kinds(spread) is not None:
        return  # SL306 says more
    severity, why = _drawn(case, spread)
    of_class = "" if classes is None else f"; {classes:.0%} of a batch are of one class"
    yield rule.found(
        path,
        f"{share:.0%} of the variance of the samples' means is between batches (at most "
        f"{ALIKE:.0%}), in the middle channel over {len(spread.sizes)} batches{of_class}{why}",
        fix="shuffle: DataLoader(..., shuffle=True); a stream wants a buffer that it is drawn from",
        severity=severity,
        between=share,
        threshold=ALIKE,
        chance=spread.chance,
        chance_threshold=CHANCE,
        batches=len(spread.sizes),
        largest_class=classes,
    )


@rule(
    "SL306",
    "alternating-batches",
    "warning",
    needs=("data",),
    threads=(
        "carpedm20/DCGAN-tensorflow#266",
        "soumith/ganhacks#9",
        "soumith/ganhacks#52",
        "eriklindernoren/PyTorch-GAN#135",
        "xu-ji/IIC#10",
    ),
)
def alternating_batches(rule: Rule, case: Case) -> Iterator[Finding]:
    """Batches are of two kinds that take turns, such as real and generated, or two domains.

    Each kind is normalized by its own statistics in training. The running ones are a mixture that
    fits neither: in eval mode both kinds come out shifted.

    As SL305, where splitting the batches in two explains over 80 % of the variance between them and
    the kind changes at least three times. Where all of a batch are of one class, SL305 tells it.
    """
    found = _gathered(case)
    if found is None:
        return
    path, spread, share = found
    classes = _largest_class(case)
    kinds = _two_kinds(spread)
    if kinds is None or (classes is not None and classes >= ONE_CLASS):
        return
    of, explained, apart = kinds
    severity, why = _drawn(case, spread)
    first = sum(kind == of[0] for kind in of)
    yield rule.found(
        path,
        f"batches are of two kinds, {first} and {len(of) - first} of {len(of)}, that change "
        f"{_switches(of)} times and explain {explained:.0%} of the variance between batches (from "
        f"{TWO_KINDS:.0%}); their means are {apart:.2g} deviations of a sample's mean apart{why}",
        fix="mix both kinds in each batch, or give each kind batch norms of its own",
        severity=severity,
        between=share,
        threshold=ALIKE,
        explained=explained,
        explained_threshold=TWO_KINDS,
        apart=apart,
        chance=spread.chance,
        batches=len(of),
    )


def _gathered(case: Case) -> tuple[str, Spread, float] | None:
    """The first layer whose batches spread by more than chance, and the share between them."""
    layers = [
        (path, layer.eval.spread)
        for path, layer in case.data.layers.items()
        if layer.eval is not None and layer.eval.spread is not None
    ]
    for path, spread in layers:
        if len(spread.sizes) < 2 or spread.degrees[1] < 1:
            continue
        ratio, size = spread.ratio, spread.degrees[1] / len(spread.sizes) + 1
        share = middle((ratio - 1).clamp(min=0) / (ratio - 1 + size).clamp(min=1e-9))
        if share > ALIKE and spread.chance * len(layers) < CHANCE:
            return path, spread, share
    return None


def _drawn(case: Case, spread: Spread) -> tuple[Severity, str]:
    lacking = LEAST_BATCHES - len(spread.sizes)
    if lacking > 0:
        return "info", f"; {lacking} more batches would decide"
    if fits(case):
        return "info", f"; the running statistics fit all of them together; {_IF_TRAINED}"
    part = case.loader is not None and case.loader.in_order and not case.data.exhausted
    if part:
        return "info", f"; the loader goes on in the order of its data set; {_IF_TRAINED}"
    if not case.model.training and not (case.data.exhausted and misses(case)):
        return "info", f"; the model is in eval(), where the order does nothing; {_IF_TRAINED}"
    return "warning", ""


_IF_TRAINED = "if training draws such batches, shuffle them"


def _largest_class(case: Case) -> float | None:
    """The share of a batch that is of its largest class, on average; None if all are of one."""
    labels = case.data.labels
    if labels is None or len(torch.unique(torch.cat(labels))) < 2:
        return None
    shares = [float((each == each.mode().values).double().mean()) for each in labels if len(each)]
    return sum(shares) / len(shares)


def _two_kinds(spread: Spread) -> tuple[list[bool], float, float] | None:
    """Each batch's kind, what the split explains, and how far the kinds are apart."""
    if len(spread.sizes) < 4:
        return None
    deviation = spread.within.sqrt()
    alive = deviation > 1e-12
    if not bool(alive.any()):
        return None
    means = spread.mean[:, alive] / deviation[alive]
    centred = means - means.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    scores = centred @ axes[0]
    ordered = scores.sort().values
    steps = ordered[1:] - ordered[:-1]
    cut = ordered[int(steps.argmax())] + steps.max() / 2
    upper = scores > cut
    of = [bool(each) for each in upper]
    if min(sum(of), len(of) - sum(of)) < 2 or _switches(of) < SWITCHES:
        return None
    one, other = centred[upper].mean(0), centred[~upper].mean(0)
    left = torch.where(upper[:, None], centred - one, centred - other)
    explained = 1 - float(left.square().sum() / centred.square().sum())
    return (of, explained, middle((one - other).abs())) if explained > TWO_KINDS else None


def _switches(of: list[bool]) -> int:
    return sum(a != b for a, b in pairwise(of))
