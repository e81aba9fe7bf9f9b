"""Activations that are made again in the backward pass, from smaller ones that are kept anyway.

A layer whose output costs little to make says how, by `remember`; the one layer that reads it runs
within `spared`, and what autograd would keep of that output is the way to make it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["remember", "spared"]


_MODIFIED = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: a parameter or an activation of a Ghost module. Take the optimizer's step after "
    "backward()"
)


class _Remade:
    """How an output is made: `make(*tensors)`, as long as no tensor has been written to."""

    def __init__(
        self, output: Tensor, make: Callable[..., Tensor], tensors: tuple[Any, ...]
    ) -> None:
        self.make, self.tensors = make, tensors
        self.versions = [t._version for t in self._written()]
        self.version = output._version

    def _written(self) -> Iterator[Tensor]:
        return (t for t in self.tensors if isinstance(t, Tensor))

    def __call__(self) -> Tensor:
        if self.versions != [t._version for t in self._written()]:
            raise RuntimeError(_MODIFIED)
        with torch.no_grad():
            return self.make(*self.tensors)


_known: Any = WeakTensorKeyDictionary()


def remember(output: Tensor, make: Callable[..., Tensor], *tensors: Any) -> None:
    """`output` is make(*tensors), to the bit; of these, tensors are kept as they are."""
    if output.requires_grad:
        _known[output] = _Remade(output, make, tensors)


@contextmanager
def spared(x: Tensor) -> Iterator[None]:
    """Within the block autograd keeps x as the way to make it, if that is known.

    Not where saved tensors go another way already, as within a checkpoint.
    """
    way = _known.get(x)
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    if way is None or hooked or way.version != x._version:
        yield
        return
    place, shape = x.data_ptr(), x.shape  # not x, which torch would keep with the function

    def packed(t: Tensor) -> Any:
        return way if t.data_ptr() == place and t.shape == shape else (t, t._version)

    with saved_tensors_hooks(packed, _unpacked):
        yield


def _unpacked(kept: Any) -> Tensor:
    """Torch does not look at the versions of what goes through hooks."""
    if isinstance(kept, _Remade):
        return kept()
    found: Tensor
    found, version = kept
    if found._version != version:
        raise RuntimeError(_MODIFIED)
    return found
