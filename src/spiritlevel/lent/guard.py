"""The promise of this room: whatever is measured, the model goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.lent.state import buffers_now, modes_now

__all__ = ["lent_buffers", "undisturbed"]


@contextmanager
def undisturbed(model: nn.Module, *, parameters: bool = True) -> Iterator[None]:
    """Within it, forward, backward and step as you like; after it, nothing has changed.

    Parameters, gradients, buffers, modes and torch's CPU random state are put back, also when the
    block raises. Values are copied back in place, so an optimizer's references stay valid; a graph
    that was recorded before the block can no longer be walked back after it. `parameters=False`
    spares their copies, for forward passes alone.
    """
    lent = [(p, p.detach().clone(), p.grad) for p in model.parameters()] if parameters else []
    buffers_back, modes_back = buffers_now(model), modes_now(model)
    random_state = torch.get_rng_state()
    for parameter, _, _ in lent:
        parameter.grad = None  # a backward inside must not add to the trainer's gradient
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value, gradient in lent:
                if not torch.equal(parameter, value):  # a write would spoil graphs that hold it
                    parameter.copy_(value)
                parameter.grad = gradient
        buffers_back()
        modes_back()
        torch.set_rng_state(random_state)


@contextmanager
def lent_buffers(model: nn.Module) -> Iterator[None]:
    """Within it the model has copies of its buffers, after it the very buffers that it had.

    So nothing is ever written to those, and a graph that holds them can still be walked back.
    """
    lent: dict[int, Tensor] = {}
    own = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for module, name, buffer in own:
        if not is_lazy(buffer):
            module._buffers[name] = lent.setdefault(id(buffer), buffer.detach().clone())
    try:
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer
