"""What can be put right mechanically, in place on the model, rule by rule.

Errors and warnings only: what is `info` may be meant. A finding's layers are its module, and those
that its evidence lists as `layers`. Statistics that do not fit the data are a matter of all layers:
those that are not frozen are taken anew together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.doctor.finding import Finding
from spiritlevel.probe.population import Population
from spiritlevel.surgery.eligible import places
from spiritlevel.surgery.log import Entry, note
from spiritlevel.surgery.statistics import set_statistics, tracks, type_name

__all__ = ["FIXES", "Fix", "Patient", "apply"]


@dataclass(frozen=True)
class Patient:
    """The model, what it is compared with, and what its batch norms are fed."""

    model: nn.Module
    reference: nn.Module | None
    population: Callable[[], Population]
    """What the batch norms are fed: measured when it is first asked for, empty without batches."""


Step = Callable[[Patient, str, Any], str | None]
"""What was done to the module at a path, in words; None where it could not be done."""


@dataclass(frozen=True)
class Fix:
    what: str
    """In an infinitive's words, for a reader."""
    step: Step
    everywhere: bool = False
    """Done to all batch norms that were fed and are not frozen."""


def apply(patient: Patient, findings: Iterable[Finding]) -> tuple[str, ...]:
    """Do it, note it in `model.spiritlevel_log`, and say what was done and what is left."""
    entries: list[Entry] = []
    left: Counter[str] = Counter()
    done: set[tuple[Step, str]] = set()
    for finding in findings:
        if finding.severity == "info":
            continue
        by_words: dict[str, list[str]] = {}
        for path, told in _done(patient, finding, done):
            by_words.setdefault(told, []).append(path)
        entries += [Entry("fixed", tuple(paths), told) for told, paths in by_words.items()]
        if not _was_done(patient, finding, done):
            left[finding.rule] += 1
    if entries:
        note(patient.model, entries)
    told_left = ", ".join(f"{id}{f' ({n} times)' if n > 1 else ''}" for id, n in left.items())
    return (*map(str, entries), *([f"Left to you: {told_left}."] if left else []))


def _done(
    patient: Patient, finding: Finding, done: set[tuple[Step, str]]
) -> Iterator[tuple[str, str]]:
    """(path, what was done) for each of its layers; what another finding has had done is left."""
    fix = FIXES.get(finding.rule)
    if fix is None:
        return
    modules = dict(patient.model.named_modules(remove_duplicate=False))
    for path in _paths(patient, fix, finding):
        if path in modules and (fix.step, path) not in done:
            with torch.no_grad():
                told = fix.step(patient, path, modules[path])
            if told is not None:
                done.add((fix.step, path))
                yield path, f"{finding.rule}: {told}"


def _was_done(patient: Patient, finding: Finding, done: set[tuple[Step, str]]) -> bool:
    fix = FIXES.get(finding.rule)
    return fix is not None and any(
        (fix.step, path) in done for path in _paths(patient, fix, finding)
    )


def _paths(patient: Patient, fix: Fix, finding: Finding) -> list[str]:
    if fix.everywhere:
        population = patient.population()
        return [path for path in population.fed if path not in population.frozen]
    layers = finding.evidence.get("layers")
    others = [each for each in layers if isinstance(each, str)] if isinstance(layers, list) else []
    return list(dict.fromkeys([finding.module, *others]))


# ---- steps ---------------------------------------------------------------------------------------


def _turn_momentum(_patient: Patient, _path: str, norm: Any) -> str | None:
    before = norm.momentum
    if not 0 < before < 1:
        return None  # 1 would become 0, which never moves
    norm.momentum = round(1 - before, 12)
    return f"momentum {before:g} -> {norm.momentum:g}"


def _to_float(_patient: Patient, _path: str, norm: nn.Module) -> str | None:
    kinds = {t.dtype for t in (*norm.parameters(), *norm.buffers()) if t.is_floating_point()}
    norm.float()
    return f"{', '.join(sorted(map(type_name, kinds)))} -> float32"


def _freeze(_patient: Patient, _path: str, norm: nn.Module) -> str | None:
    norm.eval()
    norm.requires_grad_(False)
    return "eval() and requires_grad False; each model.train() undoes the first"


def _recalibrate(patient: Patient, path: str, norm: Any) -> str | None:
    if not tracks(norm) or (fed := patient.population().fed.get(path)) is None:
        return None
    set_statistics(norm, fed.pooled, len(fed.batches))
    return f"running statistics taken anew from {len(fed.batches)} batches"


def _count(_patient: Patient, _path: str, norm: Any) -> str | None:
    before = getattr(norm, "num_batches_tracked", None)
    whole = round(float(before)) if isinstance(before, Tensor) else 0
    if "num_batches_tracked" in norm.__dict__:
        del norm.num_batches_tracked
    device = None if norm.running_mean is None else norm.running_mean.device
    norm.register_buffer("num_batches_tracked", torch.tensor(whole, device=device))
    return f"num_batches_tracked is an integer, {whole}"


def _buffers_of_reference(patient: Patient, path: str, norm: nn.Module) -> str | None:
    modules = {} if patient.reference is None else dict(patient.reference.named_modules())
    if path not in modules:
        return None
    source, copied = modules[path]._buffers, []
    for name, buffer in norm._buffers.items():
        given = source.get(name)
        if buffer is not None and given is not None and buffer.shape == given.shape:
            buffer.copy_(given)
            copied.append(name)
    return f"{', '.join(copied)} copied from the reference" if copied else None


def _without_sync(patient: Patient, path: str, norm: Any) -> str | None:
    """A batch norm of as many axes as the layer before it has, with the same tensors."""
    slots = places(patient.model).get(norm, [])
    if not slots:  # the model itself
        return None
    kind = _axes(patient.model, norm)
    new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name in ("weight", "bias"):
        setattr(new, name, getattr(norm, name))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(norm, name))
    new.train(norm.training)
    for parent, name in slots:
        parent._modules[name] = new
    return f"SyncBatchNorm -> {kind.__name__}"


def _axes(model: nn.Module, norm: nn.Module) -> Any:
    found: Any = nn.BatchNorm2d
    kinds = {
        nn.Linear: nn.BatchNorm1d,
        nn.Conv1d: nn.BatchNorm1d,
        nn.Conv2d: nn.BatchNorm2d,
        nn.Conv3d: nn.BatchNorm3d,
    }
    for module in model.modules():
        if module is norm:
            break
        found = next((made for kind, made in kinds.items() if isinstance(module, kind)), found)
    return found


_ANEW = Fix("take the running statistics anew from the batches that were measured", _recalibrate)
_ALL_ANEW = replace(_ANEW, everywhere=True)

FIXES: dict[str, Fix] = {
    "SL101": Fix("set momentum to 1 - momentum", _turn_momentum),
    "SL104": Fix("put the norm into float32", _to_float),
    "SL108": Fix("put a plain batch norm in its place", _without_sync),
    "SL203": Fix("set the norm to eval() and requires_grad False", _freeze),
    "SL204": _ANEW,
    "SL205": _ANEW,
    "SL206": _ANEW,
    "SL207": _ANEW,
    "SL208": Fix("give the norm a counter", _count),
    "SL210": Fix("make the counter an integer", _count),
    "SL301": _ALL_ANEW,
    "SL316": _ALL_ANEW,
    "SL504": Fix("copy the buffers of the reference", _buffers_of_reference),
    "SL506": _ALL_ANEW,
}
