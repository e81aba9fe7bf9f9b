"""Batch norms merged with what follows them, in a model you have.

Four steps, each of which leaves alone what it does not understand:

1. timm's batch norms that hold an activation become ours (`of_timm`).
2. The model is traced (`graphs`, `trace`), and where its own code is no graph, each of its
   children. Patterns (`patterns`) whose activation is a module of its own become one layer: the
   batch norm's class changes, the activation becomes an `nn.Identity`. For all other patterns the
   smallest module that holds them gets a new forward (`rewrite`). Then the graph is traced anew: it
   must be the old one with the patterns merged, else it is undone.
3. With an example, batch norms that no graph shows are paired with their activation by a run
   (`seen`).
4. Every other batch norm becomes ours, alone.

No parameter, buffer or key is touched. With an example, the outcome is compared with the model as
it was (`verify`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.kernels.activations import of_module
from spiritlevel.surgery import eligible, of_timm, seen, verify
from spiritlevel.surgery.graphs import by_graphs
from spiritlevel.surgery.log import Entry, Journal, note
from spiritlevel.surgery.work import Work

__all__ = ["fuse"]


def fuse(model: nn.Module, example: Any = None) -> nn.Module:
    """Merge batch norms with the add and the activation that follow them, in place.

    Returns the model. Parameters and buffers stay the same objects under the same `state_dict`
    keys; numbers are the same but for the order of sums. `model.spiritlevel_log` tells what was
    done to each batch norm, and what was left alone and why.

    `example` is a tensor, a tuple of inputs or a dict of inputs by name. With it more is found,
    and the outputs and buffers of the model, in training and in eval, are compared with those from
    before, on torch's own kernels. Where they differ the model is put back and UsageError names the
    module. Whatever else is raised, the model is as it was.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"got {type(model).__name__} to fuse; wanted a torch.nn.Module")
    before = None if example is None else verify.numbers(model, example)
    with Journal() as journal:
        work = _fused(model, example, journal, set())
        if before is not None:
            unlike = verify.unlike(model, example)
            if unlike:
                journal.back_to(0)
                work = _fused(model, example, journal, unlike)
            _verify(model, example, before, journal)
        note(model, work.entries())
    return model


def _fused(model: nn.Module, example: Any, journal: Journal, unlike: set[nn.Module]) -> Work:
    work = Work(model, journal, unlike)
    _of_timm(work)
    by_graphs(work, model)
    if example is not None:
        _by_running(work, example)
    _alone(work)
    return work


def _of_timm(work: Work) -> None:
    """Those without an activation stay open, to be merged as any others."""
    for norm in [n for n in work.open if of_timm.is_timms(type(n))]:
        act, path = of_timm.ends_in(norm), work.paths[norm]
        assert act is not None, "those that end in what is not ours are left"
        if act.name == "identity":
            work.swap(norm, None)
            work.open.add(norm)
            work.alone(norm, "timm's, without an activation")
        else:
            work.swap(norm, act)
            work.found[norm] = Entry("fused", (path,), f"batch norm -> {act}, timm's own layer")


def _by_running(work: Work, example: Any) -> None:
    """Fuse what a run shows."""
    norms = [norm for norm in work.open if norm not in work.reasons]
    for norm, act in seen.pairs(work.model, example, norms):
        slots = work.places.get(act, ())
        kind = of_module(act)
        if len(slots) == 1 and kind is not None:
            work.swap(norm, kind)
            work.absorb(slots[0])
            why = f"batch norm -> {kind}, seen by running the example"
            work.found[norm] = Entry("fused", (work.paths[norm], work.paths[act]), why)


def _alone(work: Work) -> None:
    """Give every batch norm that is left our kernels."""
    for norm in [n for n in work.open if type(n) in eligible.PLAIN]:
        why = work.reasons.get(norm) or work.seen.get(norm) or "no graph shows what follows it"
        if type(norm) is not eligible.PLAIN[type(norm)]:
            work.swap(norm, None)
            work.alone(norm, why)
        elif norm in work.found:
            work.alone(norm, why)
        work.open.discard(norm)


def _verify(model: nn.Module, example: Any, before: verify.Numbers, journal: Journal) -> None:
    if verify.differs(before, verify.numbers(model, example)) is None:
        return
    after = verify.numbers(model, example, layers=True)
    changed = [f"{n} in" for n, m in model.named_modules() if type(m) in eligible.FUSED.values()]
    after = {name: t for name, t in after.items() if not name.startswith(tuple(changed))}
    journal.back_to(0)
    where = verify.differs(verify.numbers(model, example, layers=True), after)
    raise UsageError(
        f"got a model that gives other numbers once it is fused, first at {where or 'its output'}; "
        "wanted the same. It is as it was before. Does its code look at the classes of its layers? "
        "Put a hook on the batch norms that must not be fused, or fuse its parts one by one"
    )
