"""torch-audit on the bugs and twins of tests/doctor: what it warns of, by its rules' ids.

It gets what it asks for: the model, and a training loop to watch. Where a case trains under a
probe, torch-audit watches that very loop; else it watches a copy of the model in plain SGD steps on
the case's batches; else it reads the model. Its hints on speed are left out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_audit import autopatch
from torch_audit.core import Severity

from spiritlevel.probe.watch import Probe

__all__ = ["warned"]

_SPEED = {"TA200", "TA201"}
"""Channels that fill no tensor core, a layout that is slow there: said of all nets as small."""
_STEPS = 4
_OPTIONS: dict[str, Any] = {"every_n_steps": 1, "reporters": []}


def warned(build: Callable[[], dict[str, Any]]) -> list[str]:
    """Ids of what it finds, but for what is only told as information."""
    found: set[str] = set()
    torch.manual_seed(0)
    with warnings.catch_warnings(), _watching(found):
        warnings.simplefilter("ignore")
        given = build()
    if given.get("probe") is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _train(given, found)
    return sorted(found - _SPEED)


def _keep(auditor: Any, found: set[str]) -> None:
    told = auditor.finish(report=False)
    found.update(each.rule_id for each in told.findings if each.severity > Severity.INFO)


@contextmanager
def _watching(found: set[str]) -> Iterator[None]:
    """Within it torch-audit watches whatever a probe watches."""
    enter, leave, begin = Probe.__enter__, Probe.__exit__, torch.optim.Optimizer.__init__
    optimizers: list[torch.optim.Optimizer] = []
    auditors: list[Any] = []

    def made(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        optimizers.append(self)

    def entered(self: Any) -> Any:
        own = {id(p) for p in self.model.parameters()}
        mine = [o for o in optimizers if own & {id(p) for g in o.param_groups for p in g["params"]}]
        auditors.append(autopatch(self.model, optimizer=mine[-1] if mine else None, **_OPTIONS))
        return enter(self)

    def left(self: Any, *error: Any) -> Any:
        try:
            return leave(self, *error)
        finally:
            auditor = auditors.pop()
            _keep(auditor, found)
            auditor.unpatch()

    changed: list[tuple[Any, str, Any]] = [
        (Probe, "__enter__", entered),
        (Probe, "__exit__", left),
        (torch.optim.Optimizer, "__init__", made),
    ]
    try:
        for owner, name, function in changed:
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name, _), before in zip(changed, (enter, leave, begin), strict=True):
            setattr(owner, name, before)


def _train(given: dict[str, Any], found: set[str]) -> None:
    """A few steps of a copy, as far as they go; without batches the model is only read."""
    model: nn.Module = copy.deepcopy(given["model"])
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.01) if learning else None
    auditor = autopatch(model, optimizer=optimizer, **_OPTIONS)
    try:
        for batch in list(given.get("batches") or [])[:_STEPS]:
            with suppress(RuntimeError, ValueError):  # as some bugs make a step raise
                _step(model, optimizer, batch, given.get("forward"))
        _keep(auditor, found)
    finally:
        auditor.unpatch()


def _step(model: nn.Module, optimizer: Any, batch: Any, forward: Any) -> None:
    x, y = (
        (batch[0], batch[-1]) if isinstance(batch, tuple | list) and len(batch) > 1 else (batch, 0)
    )
    output = forward(model, batch) if forward else model(x)
    classes = isinstance(y, Tensor) and not y.is_floating_point() and output.dim() == 2
    loss = F.cross_entropy(output, y) if classes else output.square().mean()
    if optimizer is not None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
