"""What is exported: a copy of the model, and what running it on the example shows of it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.catalogue import say
from spiritlevel.errors import UsageError
from spiritlevel.export.example import Example
from spiritlevel.export.metadata import Metadata
from spiritlevel.export.training_form import refuse_training_form
from spiritlevel.export.verify import outputs_of
from spiritlevel.lent.kept import kept

__all__ = ["copied", "examined"]


def copied(model: nn.Module) -> nn.Module:
    """The model on the CPU, without what torch.compile and DDP put around it.

    Raises UsageError for what cannot be copied, or is of a kind that no file is verified in.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UsageError(f"got {type(model).__name__} to export; wanted a torch.nn.Module")
    inner = _unwrapped(model)
    held = [*inner.parameters(), *inner.buffers()]
    if any(is_lazy(each) for each in held):
        raise UsageError("got a model with lazy layers; run it once on a batch before the export")
    if any(each.is_meta for each in held):
        raise UsageError(
            "got a model on the device meta, where it has no numbers; load its weights"
        )
    if any(each.dtype == torch.bfloat16 for each in held):
        raise UsageError(
            "got a model in bfloat16, which files are not verified in; wanted float32: export "
            "copy.deepcopy(model).float()"
        )
    try:
        inner = copy.deepcopy(inner)
    except Exception as error:  # whatever a module of the user's holds
        raise UsageError(
            f"got {type(error).__name__} while copying {type(inner).__name__} ({error}); wanted a "
            "model that copy.deepcopy takes, since the export works on a copy"
        ) from error
    return inner.cpu()


def _unwrapped(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


def examined(model: nn.Module, given: Example, told: Metadata) -> tuple[str, ...]:
    """Notes of what running the example shows. Raises UsageError for what cannot be exported."""
    with kept(model):  # it may count its calls
        refuse_training_form(model, given)
        before = {name: each.clone() for name, each in model.named_buffers()}
        outputs = outputs_of(model, given)
        written = [name for name, each in model.named_buffers() if _differ(each, before.get(name))]
        again = outputs_of(model, given)
        alone = outputs_of(model, given.of_batch(1))
    _refuse_undefined(outputs)
    if told.classes is not None and outputs[0].shape[-1:] != (len(told.classes),):
        raise UsageError(
            f"got {len(told.classes)} names of classes for outputs of shape "
            f"{tuple(outputs[0].shape)}; wanted one for each along the last axis"
        )
    notes = []
    if _independent(outputs, again) and not _independent(outputs, alone):
        notes.append(say("terminal.export.mates"))
    if written:
        notes.append(say("terminal.export.writes", names=", ".join(written)))
    return tuple(notes)


def _differ(now: Tensor, before: Tensor | None) -> bool:
    return before is None or not torch.allclose(now, before, rtol=0, atol=0, equal_nan=True)


def _refuse_undefined(outputs: list[Tensor]) -> None:
    """Raises UsageError for NaN, and where no value is finite. Masks are of -inf."""
    for output in outputs:
        if output.numel() and (bool(output.isnan().any()) or not bool(output.isfinite().any())):
            raise UsageError(
                f"got a model whose outputs are not finite on the example: of {output.numel()} "
                f"values {int(output.isnan().sum())} are NaN and {int(output.isinf().sum())} "
                "infinite; wanted numbers that a file can be held against. Look for NaN in its "
                "weights and the example"
            )


def _independent(outputs: list[Tensor], other: list[Tensor]) -> bool:
    """Whether the first sample has the same outputs in the other run, where that can be seen."""
    for together, single in zip(outputs, other, strict=False):
        if not (together.dim() and single.dim() and single.is_floating_point()):
            continue
        first, single = together[:1], single[:1]
        if first.shape != single.shape or not first.numel():
            continue
        scale = max(float(first.nan_to_num(0, 0, 0).abs().max()), 1e-3)
        if not torch.allclose(first, single, rtol=0, atol=1e-2 * scale, equal_nan=True):
            return False
    return True
