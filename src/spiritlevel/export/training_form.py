"""Batch norms that would normalise by the batch in a file, too: seen by running the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spiritlevel.errors import UsageError
from spiritlevel.export.example import Example
from spiritlevel.kernels import backend
from spiritlevel.lent.heard import removing

__all__ = ["refuse_training_form"]

_TRAINING = 5
"""The place of `training` among the arguments of each operation."""
_MEANS: dict[Any, int] = {F.batch_norm: 1, torch.batch_norm: 3, torch.native_batch_norm: 3}
"""Operation -> the place of its running mean."""


def refuse_training_form(model: nn.Module, given: Example) -> None:
    """Raises UsageError that names the layers which take the batch's statistics in eval."""
    found: dict[str, str] = {}
    with _listened(model) as path, _Watch(path, found), backend.use("aten"), torch.no_grad():
        given.run(model)
    if found:
        named = "; ".join(f"{path or 'the model itself'} {why}" for path, why in found.items())
        raise UsageError(
            "got a model that normalises by the batch even in eval, so that its file would give "
            f"each sample other numbers in another batch: {named}. Wanted running statistics: "
            "track_running_stats=True and layers that follow eval(), trained so; or another norm, "
            'by sl.convert(model, "group:8")'
        )


class _Watch(TorchFunctionMode):
    def __init__(self, path: list[str], found: dict[str, str]) -> None:
        super().__init__()
        self.path, self.found = path, found

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MEANS:
            given = args[_TRAINING] if len(args) > _TRAINING else kwargs.get("training")
            if given:
                place = _MEANS[func]
                mean = args[place] if len(args) > place else kwargs.get("running_mean")
                has = isinstance(mean, Tensor)
                why = "(it stays in training)" if has else "(it has no running statistics)"
                self.found.setdefault(self.path[-1], why)
        return func(*args, **kwargs)


@contextmanager
def _listened(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules at work, the innermost last."""
    path = [""]
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: path.pop() and None))
    with removing(hooks):
        yield path
