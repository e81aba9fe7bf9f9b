"""Where our layers tell the statistics that they have computed anyway.

A layer here normalizes and activates in one pass, so a hook on a child, or on its input, would read
the batch once more. Who wants the numbers subscribes; without a subscriber nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["Observer", "observing", "tell"]

Observer = Callable[[nn.Module, Tensor, Tensor, int], None]
"""Called with a layer, the mean (C,) and biased variance (C,) of its batch, and values a channel.

The tensors are the layer's own and are not to be changed; they are on its device, without grad.
"""

_observers: list[Observer] = []


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Within the block each training pass of our layers, in eager mode, is told to `observer`."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def tell(layer: nn.Module, statistics: Callable[[], tuple[Tensor, Tensor]], count: int) -> None:
    """For layers: `statistics` is called only where somebody listens."""
    if _observers:
        mean, var = statistics()
        for observer in tuple(_observers):
            observer(layer, mean, var, count)
