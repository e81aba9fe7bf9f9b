"""Where our layers tell what passes through them, and the statistics they have computed anyway.

A layer here normalizes and activates in one pass, so a hook on a child, or on its input, would read
the batch once more. Who wants the numbers subscribes; without a subscriber nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Observer", "Statistics", "Values", "observed", "observing", "tell", "tell_of", "tells"]

Statistics = Callable[[], tuple[Tensor, Tensor]]
"""Mean (C,) and biased variance (C,) of a training batch, as the layer took them.

They are the layer's own, without grad, on its device, and not to be changed.
"""

Values = Callable[[], tuple[Tensor, Tensor]]
"""Input and output of a pass, made when they are asked for where a layer has not kept them."""

Observer = Callable[[nn.Module, torch.Size, Values, Statistics | None], None]
"""Called after each pass in eager mode with layer, the input's shape, values and, in training,
statistics."""

_observers: list[Observer] = []


def tells(layer: nn.Module) -> bool:
    """Whether the layer tells of its passes itself, so that it needs no hook."""
    return getattr(type(layer), "tells_observers", False)


def observed() -> bool:
    """Whether anybody wants to be told."""
    return bool(_observers)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Within the block each pass of our layers, in eager mode, is told to `observer`."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def tell(layer: nn.Module, x: Tensor, y: Tensor, statistics: Statistics | None = None) -> None:
    """For layers, after a pass. A graph that is being made asks for no observer: no guard on it."""
    if not torch.compiler.is_compiling() and _observers:
        tell_of(layer, x.shape, lambda: (x, y), statistics)


def tell_of(
    layer: nn.Module, shape: torch.Size, values: Values, statistics: Statistics | None = None
) -> None:
    """For those who ran a layer as a part of something larger, in eager mode."""
    for observer in tuple(_observers):
        observer(layer, shape, values, statistics)
