"""Batch norms merged into the layers beside them, in a copy for eval(), which is then compared.

Graphs of the model (`watched`) show what each batch norm is fed and what reads it; codes sent
through them (`carried`) say which channels these are. What follows (`plan`) is carried out in
float64 and in the model's own types (`merging`), and each outcome is run beside the original
(`beside`).
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
from spiritlevel.models.reparam import deploy_
from spiritlevel.surgery.beside import OUTPUT, Given, first_apart, given, widened
from spiritlevel.surgery.eligible import ends_in_more, places
from spiritlevel.surgery.in_eval import OfRank, is_norm
from spiritlevel.surgery.log import Entry, note
from spiritlevel.surgery.merging import is_layer, merge_after, merge_before
from spiritlevel.surgery.plan import Plan, plan
from spiritlevel.surgery.watched import flows
from spiritlevel.surgery.work import wraps

__all__ = ["fold"]


def fold(model: nn.Module, example: Any) -> nn.Module:
    """A copy in eval() whose batch norms are part of the layers before or after them.

    Into Conv1d to 3d, ConvTranspose1d to 3d and Linear. What cannot be merged stays as it is, and
    `spiritlevel_log` of the copy names it and says why: a batch norm on what several places read, a
    layer that others call, too, a convolution that pads the shift with zeros. The branches of
    re-parameterised convolutions become one first.

    `example` is a tensor, a tuple of inputs or a dict of inputs by name. On it the copy is compared
    with the model in eval(), in float64 and in the model's own types; where they differ by more
    than roundings do, UsageError names the first layer that does. Inputs of other sizes are looked
    at, too, where the model takes them: what hangs on sizes, optional arguments or values stays.
    All of this is of `forward`; a method of another name may see what is left of a batch norm.

    The model itself stays as it is. Raises UsageError.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"got {type(model).__name__} to fold; wanted a torch.nn.Module")
    held = [*model.parameters(), *model.buffers()]
    if any(map(is_lazy, held)):
        raise UsageError("got a model with lazy layers to fold; run it once on a batch before")
    if any(tensor.is_meta for tensor in held):
        raise UsageError("got a model on the device meta, which has no numbers; load its weights")
    original = _copy(model)
    _runs(original, example)
    whole, deployed = _deployed(original)
    found = plan(whole, flows(whole, example, lambda module: is_norm(module) or is_layer(module)))
    _carry_out(found, whole)
    _verify(original, whole, found, example)
    note(whole, [*deployed, *found.entries()])
    return whole


def _copy(model: nn.Module) -> nn.Module:
    """In eval(), without what others have wrapped around it."""
    while wraps(model):
        inner = list(model.children())
        if len(inner) != 1:
            break
        (model,) = inner
    # What hooks compute anew in each pass, as pruning does, is no leaf, which no copy may hold.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(model, computed).eval()
    except Exception as error:  # whatever a module of the user's holds
        raise UsageError(
            f"got {type(error).__name__} while copying {type(model).__name__} ({error}); wanted a "
            "model that copy.deepcopy takes"
        ) from error


def _runs(original: nn.Module, example: Any) -> None:
    try:
        outputs = given(original, example)[OUTPUT]
    except Exception as error:
        raise UsageError(
            f"got a model that raised {type(error).__name__} on the example: {error}; wanted an "
            "example that its forward takes: a tensor, a tuple of inputs or a dict of inputs by "
            "name"
        ) from error
    if not any(bool(each.isfinite().any()) for each in outputs):
        raise UsageError(
            "got a model and an example that give no finite number, by which a folded copy could "
            "be compared; wanted outputs that are tensors, or tuples, lists and dicts of them"
        )


def _deployed(original: nn.Module) -> tuple[nn.Module, list[Entry]]:
    """A copy whose branches are merged."""
    whole = copy.deepcopy(original)
    branched = [p for p, m in whole.named_modules() if getattr(m, "branched", False)]
    if not branched:
        return whole, []
    try:
        whole = deploy_(_unfused(whole))
    except UsageError as error:
        return copy.deepcopy(original), [Entry("left", tuple(branched), str(error))]
    return whole, [Entry("folded", tuple(branched), "the branches of each are one convolution")]


def _unfused(model: nn.Module) -> nn.Module:
    """Ours as it was made, with the same tensors, if `fuse` has rewritten it."""
    made_as = getattr(model, "made_as", None)
    if not made_as or not any(map(ends_in_more, model.modules())):
        return model
    plain = create_model(**made_as).to(next(model.parameters()))
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def _carry_out(found: Plan, model: nn.Module) -> None:
    slots = places(model)
    for merge in found.merges:
        norm = model.get_submodule(merge.norm)
        held = found.norms[merge.norm]
        for part in merge.parts:
            layer = model.get_submodule(part.layer)
            weight = layer.weight
            assert isinstance(weight, Tensor)
            factor, shift = (
                _picked(values, part.channels, other).to(weight.device)
                for values, other in ((held.factor, 1.0), (held.shift, 0.0))
            )
            (merge_before if merge.before else merge_after)(layer, factor, shift)
        rest = copy.deepcopy(held.rest).eval()
        if merge.rank is not None:
            guard = OfRank(merge.rank).eval()
            rest = guard if held.plain else nn.Sequential(guard, rest).eval()
        for parent, name in slots[norm]:
            parent._modules[name] = rest


def _picked(values: Tensor, channels: Tensor, other: float) -> Tensor:
    picked = values.cpu()[channels.clamp(min=0)]
    return torch.where(channels >= 0, picked, torch.tensor(other, dtype=picked.dtype))


def _verify(original: nn.Module, folded: nn.Module, found: Plan, example: Any) -> None:
    """In float64, where the model runs in it, and as it is. Raises UsageError."""
    there = dict(original.named_modules())  # before branches were merged
    fused = any(map(ends_in_more, there.values()))
    anew = fused and any(getattr(module, "branched", False) for module in there.values())
    paths = [path for path in found.same() if path in there and not anew]
    wide, truth = widened(example), None
    with suppress(Exception):  # code that asks for float32
        truth = given(copy.deepcopy(original).double(), wide, paths)
    if truth is not None:
        exact, _ = _deployed(copy.deepcopy(original).double())
        _carry_out(found, exact)
        _refuse(first_apart(truth, _run(exact, wide, paths), anywhere=True), "in float64")
    before, after = given(original, example, paths), _run(folded, example, paths)
    _refuse(first_apart(before, after, truth), "beyond rounding")


def _run(folded: nn.Module, example: Any, paths: list[str]) -> Given:
    try:
        return given(folded, example, paths)
    except Exception as error:
        raise UsageError(
            f"got a model that raises {type(error).__name__} once it is folded: {error}. {_ADVICE}"
        ) from error


def _refuse(first: str | None, how: str) -> None:
    if first is not None:
        at = first if first == OUTPUT else f"what {first} gives"
        raise UsageError(
            f"got a model that gives other numbers once it is folded, first in {at} ({how}); "
            f"wanted the same. {_ADVICE}"
        )


_ADVICE = (
    "The model is as it was. Does its code look at its layers or at their weights? Fold its parts "
    "one by one, or put a forward hook on a layer that is to stay"
)
