"""`ProbeCallback` for the Trainer of Hugging Face.

    trainer = transformers.Trainer(model, arguments, callbacks=[callback := ProbeCallback()], ...)
    trainer.train()
    print(sl.check(model, probe=callback.probe))

That Trainer tells its callbacks neither of itself nor of errors. So the callback looks for it among
the callers, and closes the probe when `trainer.train` is left, however it is left.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from spiritlevel.errors import require
from spiritlevel.integrations.watching import Watching

__all__ = ["ProbeCallback"]

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    TrainerCallback = require("transformers", extra="transformers").TrainerCallback


class ProbeCallback(Watching, TrainerCallback):
    __doc__ = Watching.__doc__

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = _trainer()
        if trainer is not None:
            trainer.train = partial(_train, self, trainer.train)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(kwargs["model"], kwargs.get("optimizer"))
        self._log(_writers(_trainer()), state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()


def _train(callback: ProbeCallback, train: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return train(*args, **kwargs)
    finally:
        callback.close()


def _trainer() -> Any:
    """The one that is calling; None where something else is."""
    from transformers import Trainer

    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back
    return None


def _writers(trainer: Any) -> list[Any]:
    """Of the callbacks that write for TensorBoard, which have one on rank 0."""
    callbacks = () if trainer is None else trainer.callback_handler.callbacks
    found = [getattr(callback, "tb_writer", None) for callback in callbacks]
    return [writer for writer in found if writer is not None]
