"""All that a pass may change in a model beside its parameters, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.lent.state import buffers_now, modes_now, random_states, set_random_states

__all__ = ["Attributes", "kept", "own_values"]

_OF_TORCH = frozenset(vars(nn.Module()))


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Run the model within as you like: modes, buffers, attributes, random states are put back."""
    attributes = [Attributes(module) for module in model.modules()]
    contents = [_restoring(held) for module in model.modules() for held in own_values(module)]
    buffers_back, modes_back = buffers_now(model), modes_now(model)
    states = random_states()
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(d for d in devices if d is not None)), torch.no_grad():
        try:
            yield
        finally:
            set_random_states(states)
            for each in attributes:
                each.put_back()
            for restore in contents:
                restore()
            buffers_back()
            modes_back()


def _restoring(value: Any, around: tuple[int, ...] = ()) -> Callable[[], object]:
    """How to make a tensor, a list or a dict, and what is in it, what it is now."""
    if isinstance(value, Tensor) and not is_lazy(value):
        saved = value.detach().clone()
        return lambda: value.data.copy_(saved)
    if not isinstance(value, list | dict) or id(value) in around:  # it may hold itself
        return lambda: None
    contents = list(value.items()) if isinstance(value, dict) else list(value)
    held = value.values() if isinstance(value, dict) else value
    inside = [_restoring(each, (*around, id(value))) for each in held]

    def restore() -> None:
        value.clear()
        value.update(contents) if isinstance(value, dict) else value.extend(contents)
        for each in inside:
            each()

    return restore


class Attributes:
    """All that a module holds, and what is in its own lists and dicts."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.before = module, dict(module.__dict__)
        self.inner = {
            name: (value, _contents(value))
            for name, value in self.before.items()
            if isinstance(value, list | dict)
        }

    def put_back(self) -> str | None:
        """What had changed, in words; None if nothing had."""
        changed, held = None, self.module.__dict__
        for name, (value, contents) in self.inner.items():
            if not _same(contents, _contents(value)):
                changed = f"it changes its {name} in each pass"
                value.clear()
                value.update(contents) if isinstance(value, dict) else value.extend(contents)
        if not _same(self.before, held):
            names = [n for n, v in held.items() if self.before.get(n, self) is not v]
            changed = f"it sets {', '.join(names) or 'an attribute'} in each pass"
            held.clear()
            held.update(self.before)
        return changed


def _contents(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return list(before) == list(after) and all(before[k] is after[k] for k in before)
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))


def own_values(module: nn.Module) -> list[Any]:
    """Of all attributes but those that every module has."""
    return [value for name, value in vars(module).items() if name not in _OF_TORCH]
