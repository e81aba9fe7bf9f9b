"""Batch norms and the activation modules after them, as a run on an example shows them.

For modules whose forward pass is no graph. A pair is one where, in training as in eval, the batch
norm is called once, its output is given to the activation and to no other operation, and is gone
when the pass is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from spiritlevel.kernels.activations import of_module
from spiritlevel.lent.heard import removing
from spiritlevel.lent.kept import kept
from spiritlevel.surgery.tracer import touched
from spiritlevel.surgery.verify import run

__all__ = ["pairs"]


def pairs(
    model: nn.Module, example: Any, norms: Collection[nn.Module]
) -> list[tuple[nn.Module, nn.Module]]:
    """(batch norm, activation), each activation with all of its calls after that batch norm."""
    found = []
    for training in (True, False):
        with kept(model):
            for module in model.modules():
                module.training = training
            found.append(_watch(model, example, norms))
    one, other = found
    return [pair for pair in one if pair in other]


def _watch(
    model: nn.Module, example: Any, norms: Collection[nn.Module]
) -> list[tuple[nn.Module, nn.Module]]:
    watch = _Watch()
    hooks = [norm.register_forward_hook(watch.made) for norm in norms]
    for module in model.modules():
        if of_module(module) is not None and touched(module) is None:
            hooks.append(module.register_forward_pre_hook(watch.begun))
            hooks.append(module.register_forward_hook(watch.ended))
    with removing(hooks), watch:
        output = run(model, example)
    kept_on = {watch.makers[tensor] for tensor in list(watch.makers.keys())}
    del output
    return [
        (norm, act)
        for norm, (act, *others) in watch.fed.items()
        if not others
        and norm not in kept_on
        and watch.calls[norm] == watch.reads[norm] == watch.calls[act] == 1
    ]


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.makers: Any = WeakTensorKeyDictionary()
        """Output of a batch norm, as long as somebody holds it -> the batch norm."""
        self.fed: dict[nn.Module, list[nn.Module]] = {}
        self.reads: Counter[nn.Module] = Counter()
        self.calls: Counter[nn.Module] = Counter()

    def made(self, norm: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.calls[norm] += 1
        self.makers[output] = norm

    def begun(self, act: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.calls[act] += 1
        norm = self._maker(inputs[0]) if inputs else None
        if norm is not None:
            self.fed.setdefault(norm, []).append(act)

    def ended(self, _act: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and output is inputs[0] and output in self.makers:
            del self.makers[output]  # in place: from now on it is the activation's

    def _maker(self, value: Any) -> nn.Module | None:
        known = isinstance(value, torch.Tensor) and value in self.makers
        return self.makers[value] if known else None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            norm = self._maker(leaf)
            if norm is not None:
                self.reads[norm] += 1
        return func(*args, **kwargs)
