"""The inputs of a model, by name and in the order of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    keystr,
    tree_flatten_with_path,
    tree_map,
    tree_map_only,
    tree_structure,
    tree_unflatten,
)

from spiritlevel.errors import UsageError

__all__ = ["Example", "flat", "name_of", "read_example"]


@dataclass(frozen=True)
class Example:
    """What a model is called with: `model(*args, **kwargs)`, all of it tensors on the CPU.

    The batch is the first axis of the first input, and of all inputs that the user's example has
    as long as it there.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    """Of each tensor, in the order of the model's forward: x, mask, boxes_0."""
    tensors: tuple[Tensor, ...]
    """In the same order, which is that of `flat`."""
    batched: tuple[bool, ...]
    """Of each, whether its first axis is the batch."""

    @property
    def batch(self) -> int:
        """Samples."""
        return len(self.tensors[0])

    def __str__(self) -> str:
        """x (2, 3, 32, 32) torch.float32, ids (2, 8) torch.int64."""
        named = zip(self.names, self.tensors, strict=True)
        return ", ".join(f"{name} {tuple(each.shape)} {each.dtype}" for name, each in named)

    @property
    def as_given(self) -> Any:
        """As the user's: a tuple, or a dict of inputs by name."""
        return dict(self.kwargs) if self.kwargs else self.args

    def run(self, model: nn.Module) -> Any:
        """The model's output. Raises UsageError for whatever it raises."""
        try:
            # Copies, for it may write to them.
            args, kwargs = tree_map_only(Tensor, Tensor.clone, (self.args, self.kwargs))
            return model(*args, **kwargs)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"got {type(error).__name__} from {type(model).__name__} in eval, given the "
                f"example at batch {self.batch}, {self}: {' '.join(str(error).split())[:400]}. "
                "Wanted an example that the model takes, and a model that takes any batch"
            ) from error

    def of_batch(self, size: int) -> Example:
        """The same with so many samples: the first ones, over and over."""
        rows = torch.arange(size) % self.batch
        tensors = tuple(
            each.index_select(0, rows).contiguous(memory_format=_format(each)) if batched else each
            for each, batched in zip(self.tensors, self.batched, strict=True)
        )
        # Leaves come in the order of the tensors: by position first, then as forward has them.
        args, kwargs = tree_unflatten(list(tensors), tree_structure((self.args, self.kwargs)))
        return replace(self, args=args, kwargs=kwargs, tensors=tensors)

    def dynamic_shapes(self, model: nn.Module) -> Any:
        """As `torch.export.export` wants them, by the model's parameters: any batch."""
        batch = torch.export.Dim("batch")
        bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs)
        shapes = [{0: batch} if batched else None for batched in self.batched]
        return tree_unflatten(shapes, tree_structure(dict(bound.arguments)))


def _format(value: Tensor) -> torch.memory_format:
    for rank, format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if value.dim() == rank and value.is_contiguous(memory_format=format):
            return format
    return torch.contiguous_format


def read_example(model: nn.Module, example: Any) -> Example:
    """From a tensor, a tuple of inputs, or a dict of inputs by name. Raises UsageError."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        kwargs = dict(example)
    elif isinstance(example, tuple | list):
        args = tuple(example)
    else:
        args = (example,)
    order = _order(model)
    kwargs = dict(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
    args, kwargs = tree_map(_to_cpu, (args, kwargs))
    named = _named(model, args, kwargs)
    wrong = [f"{name}, a {type(each).__name__}" for name, each in named if not _is_input(each)]
    if wrong or not named:
        raise UsageError(
            f"got an example with {', '.join(wrong) or 'nothing in it'}; wanted tensors alone: a "
            "tensor, a tuple of the model's inputs or a dict of them by name. What is no tensor "
            "goes into the model, which has a file of its own for each value of it"
        )
    names, tensors = zip(*named, strict=True)
    if tensors[0].dim() == 0 or len(tensors[0]) == 0:
        raise UsageError(
            f"got an example whose first input, {names[0]}, has the shape "
            f"{tuple(tensors[0].shape)}; wanted a batch of one sample or more along its first axis"
        )
    batched = tuple(each.dim() > 0 and len(each) == len(tensors[0]) for each in tensors)
    return Example(args, kwargs, names, tensors, batched)


def _is_input(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _to_cpu(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return value.detach().clone().cpu()


def flat(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a call of the model is given, in the order of the parameters of its forward."""
    return [value for _, value in _named(model, args, kwargs)]


def _named(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[str, Any]]:
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except ValueError:  # it has no signature
        told: dict[str, Any] = {f"input_{i}": each for i, each in enumerate(args)} | kwargs
    except TypeError as error:
        raise UsageError(
            f"got an example that does not fit {type(model).__name__}.forward"
            f"{inspect.signature(model.forward)}: {error}; wanted a tensor, a tuple of its inputs "
            "or a dict of them by name"
        ) from error
    else:
        told = {}
        for name, value in bound.arguments.items():
            if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                raise UsageError(
                    f"got input {', '.join(value)}, which {type(model).__name__}.forward takes by "
                    f"**{name}; wanted inputs that it names, which is what torch.export follows"
                )
            told[name] = value
    leaves, _ = tree_flatten_with_path(told)
    return [(name_of(keystr(path)), value) for path, value in leaves]


def name_of(path: str) -> str:
    """Of the path of a leaf: ['boxes'][0] -> boxes_0."""
    return "_".join("".join(c if c.isalnum() or c == "_" else " " for c in path).split())


def _order(model: nn.Module) -> dict[str, int]:
    """The place of each parameter of its forward; none where they cannot be known."""
    with suppress(ValueError):
        return {name: i for i, name in enumerate(inspect.signature(model.forward).parameters)}
    return {}
