"""Running statistics taken anew: those of a population in the place of a running average.

What training leaves in a batch norm is an average over its last batches, of weights that have
moved since. Here the weights stand still, and each layer gets the mean and the unbiased variance,
per channel, of all that it is fed over all batches (Wu and Johnson 2021, section 3): each value
counts once, whichever batch it is in, and float64 partial results are merged without a sum of
squares that could cancel (Chan, Golub and LeVeque 1983).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.lent.as_used import borrowed, frozen_norms, refuse_lazy
from spiritlevel.lent.feeding import MOST_BYTES, Forward, take
from spiritlevel.lent.guard import lent_buffers
from spiritlevel.lent.norms import batch_norms
from spiritlevel.lent.rewound import rewound
from spiritlevel.lent.together import ranks, together
from spiritlevel.surgery.log import note
from spiritlevel.surgery.on_ranks import fed_on_ranks, scored_on_ranks
from spiritlevel.surgery.passes import Fed, Passes
from spiritlevel.surgery.recalibration import layer_entries, left_entries, many, summary
from spiritlevel.surgery.statistics import fit, set_statistics, tracks, type_name
from spiritlevel.surgery.trial import OWN_FORWARD, unusual_norms, why_unmeasured

__all__ = ["recalibrate"]


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    sequential: bool = False,
    accuracy: bool = True,
) -> nn.Module:
    """The model, whose batch norms hold the statistics of what they are fed over `batches`.

    All run in eval(): dropout is off. By default all layers are measured in one pass, and each
    divides by the statistics of the batch meanwhile, as in training. With `sequential` they follow
    one another, in the order in which they are first called, each fed what it will see in eval(),
    the layers before it done: one pass a layer and one to find the order. A layer that is called
    again behind its own output divides by the batch's there.

    Frozen layers keep what they have, as do those that no batch reaches, that share it, or whose
    own forward takes other statistics than those of what it is given. Nothing else changes, and
    nothing at all where this raises: modes, weights, gradients, momentum, hooks, random states.
    `num_batches_tracked` becomes the number of calls that the statistics are from, but for batch
    renormalization. With targets in the batches `accuracy` costs two more passes: before and after.
    `model.spiritlevel_log` has one `Recalibration`, one `Recalibrated` a layer, and what was left.

    In a process group every rank must call it, with batches of its own, as many as it has: all end
    with the statistics of all data. Raises UsageError, on all ranks, for batches that are none, do
    not end, are not finite, or are others when `sequential` reads them again, for fewer than two
    values a channel, and for lazy layers.
    """
    if not _any_tracks(model, forward, sequential, accuracy):
        note(model, left_entries(model, {}, {}, set(), {}))
        return model
    unusual = unusual_norms(model)
    unmeasured = why_unmeasured(model, unusual, alone=ranks() == 1)
    with lent_buffers(model), borrowed(model) as buffers_back, rewound(batches) as rewind:
        passes = Passes(model, {}, unusual, batches, forward, buffers_back, rewind)
        frozen: set[str] = set()
        again = _set_up(passes, frozen, unmeasured, sequential, accuracy)
        norms = passes.norms
        fed, count = _measured(passes)
        if sequential:
            fed = _in_order(passes, fed)
        _refuse_unfit(norms, fed)
        pooled = {path: each.pooled for path, each in fed.items()}
        before = scored_on_ranks(passes, {}) if again and accuracy and fed else None
        after = None if before is None else scored_on_ranks(passes, pooled)
    once = accuracy and not (again and passes.same)
    unmeasured |= dict.fromkeys(passes.unlike, OWN_FORWARD)
    entries = [*layer_entries(norms, fed), *left_entries(model, norms, fed, frozen, unmeasured)]
    if fed:
        entries.insert(0, summary(sequential, count, before, after, once=once))
    _write(norms, fed)
    note(model, entries)
    return model


def _any_tracks(model: Any, forward: Any, sequential: Any, accuracy: Any) -> bool:
    """Whether a rank has a norm with running statistics. Raises UsageError for wrong types."""

    def work() -> Tensor:
        if not isinstance(model, nn.Module):
            raise UsageError(f"got a {type(model).__name__}; wanted a torch.nn.Module")
        for name, value in (("sequential", sequential), ("accuracy", accuracy)):
            if not isinstance(value, bool):
                raise UsageError(f"got {name}={value!r}; wanted True or False")
        if forward is not None and not callable(forward):
            raise UsageError(f"got forward={forward!r}; wanted a function of a model and a batch")
        refuse_lazy(model)
        return torch.tensor([float(any(map(tracks, batch_norms(model).values())))])

    return bool(together(work, 1).any())


def _set_up(
    passes: Passes,
    frozen: set[str],
    unmeasured: Mapping[str, str],
    sequential: bool,
    accuracy: bool,
) -> bool:
    """Puts the model in eval(), its norms into `passes`, and those that are frozen into `frozen`.

    Whether all ranks can read their batches again; what can be read once is held for
    `sequential` alone. Raises UsageError where ranks want different things.
    """

    def work() -> Tensor:
        frozen.update(frozen_norms(passes.model))
        kept = frozen | unmeasured.keys()
        norms = batch_norms(passes.model).items()
        passes.norms = {path: norm for path, norm in norms if tracks(norm) and path not in kept}
        passes.model.eval()
        for norm in passes.norms.values():
            norm.training = False
        once = isinstance(passes.batches, Iterator)
        if once and sequential:
            passes.batches, once = _held(passes.batches), False
        channels = sum(norm.running_mean.numel() for norm in passes.norms.values())
        wanted = (not once, accuracy, sequential, len(passes.norms), channels)
        return torch.tensor(wanted, dtype=torch.float64)

    rows = together(work, 5)
    if not bool((rows[:, 1:] == rows[:1, 1:]).all()):
        raise UsageError("got other batch norms or options on some ranks; wanted the same on all")
    return bool(rows[:, 0].all())


def _held(batches: Iterable[Any]) -> Iterable[Any]:
    held = take(batches, sys.maxsize)
    if not held.exhausted:
        raise UsageError(
            f"got a {type(batches).__name__}, which can be read once, and sequential=True, which "
            f"reads it once a layer; it cannot be held, since its first "
            f"{many(len(held.batches), 'batch')} fill {MOST_BYTES >> 20} MiB. Wanted a list or a "
            "loader"
        )
    return held.batches


def _measured(passes: Passes) -> tuple[dict[str, Fed], int]:
    """All layers in one pass, as `fed_on_ranks` has them, and the batches on all ranks."""
    norms = passes.norms
    if not norms:
        return {}, 0
    fed, count = fed_on_ranks(passes, {}, list(norms))
    if count == 0:
        raise UsageError("got no batches; wanted an iterable of at least one")
    if not fed and not passes.unlike:
        raise UsageError(
            f"got batches that reach none of the batch norms {', '.join(norms)}; wanted a forward "
            "pass that calls them"
        )
    return fed, count


def _in_order(passes: Passes, fed: Mapping[str, Fed]) -> dict[str, Fed]:
    """One layer after another, those before it with the statistics that they have got."""
    found: dict[str, Fed] = {}
    for path, before in fed.items():
        done = {path: each.pooled for path, each in found.items()}
        anew, _ = fed_on_ranks(passes, done, [path], path if before.most == 1 else None)
        if path not in anew or anew[path].pooled.count != before.pooled.count:
            raise UsageError(
                f"got another number of values for {path!r} when the same batches were read again; "
                "wanted a forward pass that gives it as many in each"
            )
        found[path] = anew[path]
    return found


def _refuse_unfit(norms: Mapping[str, Any], fed: Mapping[str, Fed]) -> None:
    """Raises UsageError for statistics that are none, or that a layer cannot hold."""
    for path, each in fed.items():
        if each.pooled.count < 2:
            raise UsageError(
                f"got a single value a channel for {path!r} in all batches, hence no variance; "
                "wanted two or more"
            )
        if not fit(norms[path], each.pooled):
            kind = type_name(norms[path].running_var.dtype)
            raise UsageError(
                f"got statistics for {path!r} that {kind} cannot hold; wanted its running "
                "statistics in float32"
            )


def _write(norms: Mapping[str, Any], fed: Mapping[str, Fed]) -> None:
    """All or none, also where it is interrupted."""
    held = [(t, t.clone()) for path in fed for t in norms[path].buffers(recurse=False)]
    try:
        for path, each in fed.items():
            set_statistics(norms[path], each.pooled, each.calls)
    except BaseException:
        with torch.no_grad():
            for tensor, value in held:
                tensor.copy_(value)
        raise
