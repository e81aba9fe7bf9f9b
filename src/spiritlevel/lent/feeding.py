"""How a batch of the user's is given to a model, and what comes back.

A batch is a tensor, a tuple or list `(input, ..., target)` or a dict; `forward(model, batch)` of
the user's runs any other. A tuple's last element is the target where there are two or more; what
stands before it goes to the model by position. A dict goes by keywords, without its target, which
is what `labels`, `label`, `target`, `targets` or `y` holds. The output is the tensor that the model
returns, the first of several, or `.logits`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from spiritlevel.errors import UsageError
from spiritlevel.lent.blame import told_of
from spiritlevel.lent.rewound import rewound

__all__ = [
    "MOST_BYTES",
    "Forward",
    "Progress",
    "SingleValue",
    "Taken",
    "drawn",
    "refuse_one",
    "run_batch",
    "size_of",
    "take",
    "targets",
    "tensors_in",
]

Forward = Callable[[nn.Module, Any], Any]
Progress = Callable[[str, int, int], None]
"""Called with what is done, how many passes are done, and of how many."""

MOST_BYTES = 1 << 30
"""Batches are held to be fed several times; a GiB is some 1,700 images of 3 x 224 x 224."""
_TARGETS = ("labels", "label", "target", "targets", "y")


class SingleValue(Exception):
    """A layer would have to take the variance of one value, which torch refuses in training."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass(frozen=True)
class Taken:
    """Batches as they came, held to be fed more than once."""

    batches: tuple[Any, ...]
    exhausted: bool
    """There were no more."""
    notes: tuple[str, ...] = ()


def take(batches: Iterable[Any] | Taken, most_batches: int = 32) -> Taken:
    """The first batches; the random states that the loader draws from are put back.

    Raises UsageError for none, and for one batch in the place of many.
    """
    if isinstance(batches, Taken):
        return batches
    if isinstance(most_batches, bool) or not isinstance(most_batches, int) or most_batches < 1:
        raise UsageError(f"got most_batches={most_batches!r}; wanted a number of 1 or more")
    taken: list[Any] = []
    held = 0
    with rewound(batches):
        for batch in islice(drawn(batches), most_batches):
            taken.append(batch)
            held += sum(t.nbytes for t in tensors_in(batch))
            if held >= MOST_BYTES:
                break
    if not taken:
        raise UsageError("got no batches; wanted an iterable of at least one")
    full = held >= MOST_BYTES
    exhausted = len(taken) < most_batches and not full
    with suppress(TypeError):  # an iterable without a length, whose next batch is not drawn
        exhausted = len(taken) == len(batches)  # type: ignore[arg-type]
    if exhausted:
        return Taken(tuple(taken), True)
    why = f"they fill {MOST_BYTES >> 20} MiB" if full else f"most_batches={most_batches}"
    return Taken(tuple(taken), False, (f"measured on the first {len(taken)} batches: {why}",))


def drawn(batches: Iterable[Any]) -> Iterator[Any]:
    """One after another. Raises UsageError for one in the place of many, and where they raise."""
    refuse_one(batches)
    count = 0
    try:
        for batch in batches:
            count += 1
            yield batch
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"got {type(error).__name__}: {error} from the batches, after {count} of "
            "them; wanted an iterable that can be read to its end"
        ) from error


def refuse_one(batches: Any) -> None:
    """Raises UsageError for one batch in the place of many."""
    alike = isinstance(batches, tuple) and all(isinstance(each, Tensor) for each in batches)
    pair = alike and len({each.dim() for each in batches}) > 1
    if isinstance(batches, Tensor | Mapping) or pair or not isinstance(batches, Iterable):
        kind = "a tuple of an input and a target" if pair else f"a {type(batches).__name__}"
        raise UsageError(
            f"got {kind} as batches; wanted an iterable of batches: put a single one in a list"
        )


def _plain(batch: Any) -> Any:
    """Mappings of other libraries as a dict, which the walk over tensors knows."""
    return dict(batch) if isinstance(batch, Mapping) else batch


def run_batch(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """The model's output for a batch, moved to the model's device and floating type.

    Raises UsageError that names the innermost module that raised.
    """
    try:
        batch = _moved(model, _plain(batch))
        if forward is not None:
            return forward(model, batch)
        given, named = _arguments(model, batch)
        return model(*given, **named)
    except SingleValue:
        raise
    except Exception as error:
        raise UsageError(told_of(model, error, batch)) from error


def _arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, dict):
        taken = _keywords(model)
        return (), {k: v for k, v in batch.items() if k not in _TARGETS or k in taken}
    if isinstance(batch, tuple | list):
        return tuple(batch[:-1] if len(batch) > 1 else batch), {}
    return (batch,), {}


def _keywords(model: nn.Module) -> set[str]:
    with suppress(TypeError, ValueError):
        return set(inspect.signature(model.forward).parameters)
    return set()


def targets(batch: Any) -> Tensor | None:
    """What the batch's output is held against, if it is a tensor."""
    found: Any = None
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in _TARGETS if name in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        found = batch[-1]
    if isinstance(found, list | tuple) and found and all(type(each) is int for each in found):
        found = torch.tensor(found)
    if not isinstance(found, Tensor):
        return None
    column = found.dim() == 2 and found.shape[1] == 1 and not found.is_floating_point()
    return found[:, 0] if column else found


def size_of(batch: Any) -> int:
    """Samples: the length of the first tensor; 0 where there is none."""
    return next((len(t) for t in tensors_in(batch) if t.dim()), 0)


def tensors_in(batch: Any) -> list[Tensor]:
    return [t for t in tree_leaves(_plain(batch)) if isinstance(t, Tensor)]


def _moved(model: nn.Module, batch: Any) -> Any:
    held = [t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)]
    device = held[0].device if held else None
    kind = next((t.dtype for t in held if t.is_floating_point()), torch.float32)

    def move(tensor: Tensor) -> Tensor:
        cast = kind != torch.float32 and tensor.dtype == torch.float32
        # A copy, since a model may write to its input in place, and the batch is fed again.
        return tensor.to(device or tensor.device, kind if cast else tensor.dtype, copy=True)

    return tree_map_only(Tensor, move, batch)
