"""`ProbeHandler` for the engines of PyTorch-Ignite.

    handler = ProbeHandler(model, optimizer=optimizer, every=50)
    handler.attach(trainer)
    trainer.run(loader, max_epochs=10)
    print(sl.check(model, probe=handler.probe))

An engine whose errors have a handler raises them no more. So the probe is closed when
`trainer.run` is left, however it is left; an interrupted engine, which will go on, keeps it open.
"""

from __future__ import annotations

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
        super().__init__(every=every, writer=writer, report=report, check=check)
        self.model, self.optimizer = model, optimizer
        self._interrupted = False

    def attach(self, trainer: Any) -> None:
        """Watch each run of this engine. Raises UsageError for what is none."""
        if not isinstance(trainer, _engine.Engine):
            raise UsageError(
                f"got {type(trainer).__name__} to attach to; wanted the ignite.engine.Engine that "
                "trains the model"
            )
        if trainer.has_event_handler(self._started, _engine.Events.STARTED):
            return
        trainer.add_event_handler(_engine.Events.STARTED, self._started)
        trainer.add_event_handler(_engine.Events.INTERRUPT, self._interrupts)
        trainer.run = partial(_run, self, trainer.run)

    def _started(self, trainer: Any) -> None:
        self._begin(self.model, self.optimizer)
        self._log((), trainer.state.iteration)

    def _interrupts(self, _trainer: Any) -> None:
        self._interrupted = True


def _run(handler: ProbeHandler, run: Any, *args: Any, **kwargs: Any) -> Any:
    handler._interrupted = False
    try:
        return run(*args, **kwargs)
    finally:
        if not handler._interrupted:
            handler.close()
