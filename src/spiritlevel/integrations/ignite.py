"""`ProbeHandler` for the engines of PyTorch-Ignite.

    handler = ProbeHandler(model, optimizer=optimizer, every=50)
    handler.attach(trainer)
    trainer.run(loader, max_epochs=10)
    print(sl.check(model, probe=handler.probe))

An engine whose errors have a handler raises them no more. So the probe is closed when
`trainer.run` is left, however it is left; an interrupted engine, which will go on, keeps it open.
"""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from spiritlevel.errors import UsageError, require
from spiritlevel.integrations.watching import Watching

__all__ = ["ProbeHandler"]

_engine = require("ignite", extra="ignite").engine


class ProbeHandler(Watching):
    __doc__ = f"Of `model`. {Watching.__doc__}"

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Any = None,
        every: int = 50,
        writer: Any = None,
        report: str | Path | None = None,
        check: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"got {type(model).__name__} as the model; wanted the torch.nn.Module that the "
                "engine trains"
            )
        super().__init__(every=every, writer=writer, report=report, check=check)
        self.model, self.optimizer = model, optimizer
        self._engine: Any = None
        self._interrupted = False
        self._iterations = 0

    def attach(self, trainer: Any) -> None:
        """Watch each run of this engine, and of no other. Raises UsageError.

        It is to be called before the run, whose start it waits for.
        """
        if not isinstance(trainer, _engine.Engine):
            raise UsageError(
                f"got {type(trainer).__name__} to attach to; wanted the ignite.engine.Engine that "
                "trains the model"
            )
        if trainer is self._engine:
            return
        if self._engine is not None:
            raise UsageError(
                "got a second engine to attach to; wanted the one that trains the model, which "
                "validation by another belongs to. Make a ProbeHandler for each that trains"
            )
        if _runs(trainer):
            raise UsageError(
                "got an engine that runs already; wanted one whose start is yet to come. Attach "
                "before trainer.run"
            )
        self._engine = trainer
        trainer.add_event_handler(_engine.Events.STARTED, self._started)
        trainer.add_event_handler(_engine.Events.INTERRUPT, self._interrupts)
        trainer.add_event_handler(_engine.Events.ITERATION_COMPLETED, self._iterated)
        trainer.run = partial(_run, self, trainer.run)

    def _started(self, trainer: Any) -> None:
        self._begin(self.model, self.optimizer)
        self._log((), trainer.state.iteration)

    def _interrupts(self, _trainer: Any) -> None:
        self._interrupted = True

    def _iterated(self, _trainer: Any) -> None:
        self._iterations += 1

    def _warn_of_nothing_read(self) -> None:
        if not self._iterations:
            return
        if self.probe is None:
            warnings.warn(
                f"got {self._iterations} iterations of a run that had begun before this "
                "ProbeHandler was attached, and was interrupted; wanted a run from its start: "
                "nothing was read. Attach before trainer.run",
                stacklevel=3,
            )
            return
        counts = self.probe.counts
        ran = counts.forwards or any(layer.forwards for layer in counts.layers.values())
        if not (ran or counts.backwards):
            warnings.warn(
                f"got {self._iterations} iterations in which the {type(self.model).__name__} of "
                "this ProbeHandler neither ran nor changed; wanted the module that the engine "
                "trains: nothing was read",
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_engine": None}


def _run(handler: ProbeHandler, run: Any, *args: Any, **kwargs: Any) -> Any:
    handler._interrupted, handler._iterations = False, 0
    try:
        state = run(*args, **kwargs)
    finally:
        if not handler._interrupted:
            handler.close()
    if not handler._interrupted:
        handler._warn_of_nothing_read()
    return state


def _runs(engine: Any) -> bool:
    """Whether its `run` is among the callers; ignite itself does not tell."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "run" and frame.f_locals.get("self") is engine:
            return True
        frame = frame.f_back
    return False
