"""`check`: measures what a model's rules need, and asks them.

The model is left as it was found, also where something raises. A rule that raises is a fault of
ours: its error goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spiritlevel.catalogue import say
from spiritlevel.doctor import (
    batches,
    beginnings,
    buffers,
    construction,
    conversion,
    copies,
    inputs,
    modes,
    order,
    ranks,
    readings,
    sharing,
    statistics,
    training,
    twins,
    values,
)
from spiritlevel.doctor.case import Case
from spiritlevel.doctor.choice import chosen
from spiritlevel.doctor.diagnosis import Diagnosis
from spiritlevel.doctor.finding import SEVERITIES, Finding
from spiritlevel.doctor.fixes import Patient, apply
from spiritlevel.doctor.loader import Loader
from spiritlevel.doctor.rule import RULES, Need, Rule
from spiritlevel.errors import UsageError
from spiritlevel.lent.feeding import Progress, take
from spiritlevel.lent.guard import lent_buffers
from spiritlevel.lent.kept import kept
from spiritlevel.probe.compare import compare
from spiritlevel.probe.evidence import measure
from spiritlevel.probe.gap import gap
from spiritlevel.probe.population import Population, population
from spiritlevel.probe.watch import Probe
from spiritlevel.surgery.verify import run

__all__ = ["RULES", "check"]

_RULES_OF = (
    construction,
    order,
    modes,
    buffers,
    beginnings,
    ranks,
    twins,
    training,
    readings,
    conversion,
    copies,
    statistics,
    batches,
    values,
    inputs,
    sharing,
)
"""Importing them has entered their rules."""


@dataclass(frozen=True)
class _Asked:
    """The arguments of a check, which `Diagnosis.apply` asks again."""

    model: nn.Module
    batches: Any
    loader: Any
    probe: Any
    reference: nn.Module | None
    example: Any
    forward: Callable[[nn.Module, Any], Any] | None
    rules: tuple[Rule, ...]
    most_batches: int
    progress: Progress | None

    def needs(self, *needs: Need) -> bool:
        """Whether a rule that is asked needs one of these."""
        return any(need in rule.needs for rule in self.rules for need in needs)


def check(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    probe: Any = None,
    reference: nn.Module | None = None,
    example: Any = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    select: str | Iterable[str] = (),
    ignore: str | Iterable[str] = (),
    most_batches: int = 32,
    progress: Progress | None = None,
) -> Diagnosis:
    """What is wrong with the model's normalization, with the numbers that show it.

    Without data those rules are asked that read the model alone. `batches`, an iterable of tensors,
    `(input, ..., target)` tuples or dicts, lets those be asked that measure; at most
    `most_batches` are read, and held while it lasts. A `probe` that has watched the model train
    lets those on the loop be asked; a `reference`, the model before a conversion or the source of
    an average, those that compare, on the batches or on an `example`: a tensor, a tuple of inputs
    or a dict of them. `forward(model, batch)` runs the model where a batch is none of these.
    `select` and `ignore` take ids and beginnings of ids, as `["SL3", "SL203"]`.

    The model is left as it was found, with its buffers, modes and random states. Raises UsageError.
    """
    rules = tuple(chosen(select, ignore))
    _refuse(model, batches, probe, reference, example)
    if forward is not None and not callable(forward):
        raise UsageError(
            f"got {type(forward).__name__} as forward; wanted a function of a model and a batch"
        )
    loader = None if batches is None else Loader.of(batches)
    asked = _Asked(
        model,
        batches,
        loader,
        probe,
        reference,
        example,
        forward,
        rules,
        most_batches,
        progress,
    )
    if isinstance(batches, Iterator):  # which gives them once, and they may be asked for again
        asked = replace(asked, batches=take(batches, most_batches))
    return _run(asked)


def _run(asked: _Asked) -> Diagnosis:
    case, notes = _measured(asked)
    findings: list[Finding] = []
    skipped = {}
    for rule in asked.rules:
        lacking = next((need for need in rule.needs if not _has(case, asked, need)), None)
        if lacking is not None:
            skipped[rule.id] = say(f"needs.{lacking}", "en")
            continue
        try:
            findings += rule(case)
        except Exception as error:
            error.add_note(f"in rule {rule.id}: a fault of spiritlevel, not of the model")
            raise

    def fix(diagnosis: Diagnosis) -> Diagnosis:
        patient = Patient(asked.model, asked.reference, cache(lambda: _fed(asked)))
        done = apply(patient, diagnosis.findings)
        again = _run(asked)
        return replace(again, model=diagnosis.model, notes=(*again.notes, *done))

    return Diagnosis(
        model=type(asked.model).__name__,
        findings=tuple(_sorted(asked.model, findings)),
        asked=tuple(rule.id for rule in asked.rules if rule.id not in skipped),
        skipped=skipped,
        gap=case.gap,
        notes=notes,
        _fix=fix,
    )


def _has(case: Case, asked: _Asked, need: Need) -> bool:
    given = {
        "data": asked.batches is not None,
        "targets": case.gap is not None,
        "probe": asked.probe is not None,
        "reference": asked.reference is not None,
        "example": asked.example is not None or asked.batches is not None,
    }
    return given[need]


def _sorted(model: nn.Module, findings: list[Finding]) -> list[Finding]:
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    order = {path: place for place, path in enumerate(paths)}
    return sorted(
        findings,
        key=lambda finding: (
            SEVERITIES.index(finding.severity),
            finding.rule,
            order.get(finding.module, len(order)),
        ),
    )


# ---- measuring -----------------------------------------------------------------------------------


def _measured(asked: _Asked) -> tuple[Case, tuple[str, ...]]:
    """What the rules that are asked read, and what a reader should know of it."""
    case = Case(asked.model, loader=asked.loader, probe=asked.probe, reference=asked.reference)
    if asked.batches is None and asked.example is None:
        return case, ()
    forward = asked.forward if asked.batches is not None else run
    given = [asked.example] if asked.batches is None else asked.batches
    with _as_found(asked):
        taken = take(given, asked.most_batches)
        notes = list(taken.notes)
        if asked.needs("data", "targets", "example"):
            options: Any = {"forward": forward, "progress": asked.progress}
            data = measure(asked.model, taken, **options)
            notes += data.notes
            case = replace(case, data=data)
            if asked.needs("targets") and asked.batches is not None:
                case = replace(case, gap=gap(asked.model, taken, data, **options))
        if asked.needs("reference") and asked.reference is not None:
            on_example = asked.example is not None
            both = compare(
                asked.model,
                asked.reference,
                [asked.example] if on_example else taken,
                forward=run if on_example else forward,
            )
            case = replace(case, comparison=both)
    return case, tuple(dict.fromkeys(notes))


def _fed(asked: _Asked) -> Population:
    if asked.batches is None:
        return Population()
    with _as_found(asked):
        taken = take(asked.batches, asked.most_batches)
        return population(asked.model, taken, forward=asked.forward)


@contextmanager
def _as_found(asked: _Asked) -> Iterator[None]:
    """Afterwards the models, and what draws the batches' order, are what they were."""
    generators = {
        id(found): found
        for holder in (asked.batches, getattr(asked.batches, "sampler", None))
        if isinstance(found := getattr(holder, "generator", None), torch.Generator)
    }
    states = [(each, each.get_state()) for each in generators.values()]
    with ExitStack() as stack:
        for model in (asked.model, asked.reference):
            if model is not None:
                stack.enter_context(lent_buffers(model))
                stack.enter_context(kept(model))
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


# ---- wrong use -----------------------------------------------------------------------------------


def _refuse(model: Any, batches: Any, probe: Any, reference: Any, example: Any) -> None:
    for name, given in (("model", model), ("reference", reference)):
        if not isinstance(given, nn.Module) and (given is not None or name == "model"):
            raise UsageError(
                f"got {type(given).__name__} as the {name} to check; wanted a torch.nn.Module"
                + (". Build it first" if callable(given) else "")
            )
    if probe is not None:
        _refuse_probe(model, probe)
    if batches is None and example is None:
        return
    for each in (model, reference):
        if each is not None and any(map(is_lazy, (*each.parameters(), *each.buffers()))):
            raise UsageError(
                f"got {type(each).__name__} with lazy layers, and data; run it once before"
            )


def _refuse_probe(model: nn.Module, probe: Any) -> None:
    if not isinstance(probe, Probe):
        raise UsageError(
            f"got {type(probe).__name__} as the probe; wanted a spiritlevel.Probe that has watched "
            "this model train"
        )
    if not set(probe.model.modules()) & set(model.modules()):
        raise UsageError(
            f"got a probe of another {type(probe.model).__name__}; wanted one that has watched "
            "this very model, or its wrapper, train"
        )
