"""`ProbeCallback` for the Trainer of Lightning, by either of its names.

    trainer = lightning.Trainer(callbacks=[callback := ProbeCallback(every=50)])
    trainer.fit(module, loader)
    print(sl.check(module, probe=callback.probe))

Lightning trains by `training_step`, not by `module(...)`: so what a training step does before its
(first) backward pass is told to the probe as one pass of the module. What runs before training, as
the sanity check does, is not read.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spiritlevel.errors import MissingExtra, require
from spiritlevel.integrations.watching import Watching

__all__ = ["ProbeCallback"]

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _base() -> Any:
    """The callbacks of the name in use, of both where both are: each knows only its own."""
    names = [name for name in _NAMES if sys.modules.get(name)] or list(filter(_is_there, _NAMES))
    if not names:
        require("lightning", extra="lightning")
    bases = tuple(import_module(name).Callback for name in names)
    return bases[0] if len(bases) == 1 else type("Callback", bases, {})


def _is_there(name: str) -> bool:
    try:
        require(name.partition(".")[0], extra="lightning")
    except MissingExtra:
        return False
    return True


if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    Callback = _base()


class ProbeCallback(Watching, Callback):
    __doc__ = Watching.__doc__

    _pass: ExitStack | None = None
    """Open while a step of training or validation runs forward."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        optimizers = trainer.optimizers
        self._begin(pl_module, optimizers[0] if len(optimizers) == 1 else None)
        self._log(_writers(trainer), trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        self._pass_begins()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self._pass_ends()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        self._pass_ends()

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        self._pass_begins()

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        self._pass_ends()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.close()  # where a tuner has left the training

    def close(self) -> None:
        self._pass_ends()
        super().close()

    def _pass_begins(self) -> None:
        self._pass_ends()  # that of a batch that was skipped
        if self.probe is not None and self._running:
            self._pass = ExitStack()
            self._pass.enter_context(self.probe.forward_pass())

    def _pass_ends(self) -> None:
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pass": None}


def _writers(trainer: Any) -> list[Any]:
    """Of the loggers that write for TensorBoard; those of other ranks write nothing."""
    found = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [each for each in found if callable(getattr(each, "add_scalar", None))]
