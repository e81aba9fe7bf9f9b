"""What a model holds and costs, counted on its shapes alone.

A multiply-add is one a * b + c. Convolutions and linear layers take as many as torch's flop counter
finds, whose flops are twice those. A norm in eval takes one for each number it puts out, for

    y = x * (weight / sqrt(var + eps)) + (bias - mean * weight / sqrt(var + eps))

What a norm that keeps no running moments spends on the moments of each image is not counted, nor
are activations, sums, pooling and biases.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.nn import FrozenBatchNorm

__all__ = ["Counts", "count", "counted"]

_MOST = 100_000
"""Pixels a side, and channels."""
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm)  # instance norms are _NormBase

_aten = torch.ops.aten
_BATCH_NORMS = (
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit,
    _aten._native_batch_norm_legit_no_training,
)
"""The first is told as one of the others where torch takes it apart, and counted once."""
_NORM_OPERATIONS = (*_BATCH_NORMS, _aten.native_group_norm, _aten.native_layer_norm)


_POINTWISE = (_aten.add, _aten.sub, _aten.mul, _aten.relu, _aten.sigmoid)


@dataclass(frozen=True)
class Counts:
    """Of one model; what depends on the image is for a single one."""

    parameters: int
    multiply_adds: int
    """Of convolutions and linear layers."""
    norm_layers: int
    norm_parameters: int
    norm_elements: int
    """Numbers that the norms put out, which is how many multiply-adds they take."""

    @property
    def multiply_adds_with_norms(self) -> int:
        return self.multiply_adds + self.norm_elements


def count(model: nn.Module, image_size: int, in_chans: int = 3) -> Counts:
    """What `model` holds, and costs in eval for one image (in_chans, image_size, image_size).

    Nothing is computed and no memory taken: a copy without values runs on the meta device, so the
    model stays as it is, and hooks on it see nothing. Raises UsageError for images that it does
    not take, and for a model with lazy layers that have not run yet.
    """
    return counted(_without_values(model), image_size, in_chans)


def counted(model: nn.Module, image_size: int, in_chans: int = 3) -> Counts:
    """As `count`, of a model that is on the meta device already, and is put in eval."""
    if not 1 <= image_size <= _MOST or not 1 <= in_chans <= _MOST:
        raise UsageError(f"got {image_size=}, {in_chans=}; wanted 1 to {_MOST:,} of each")
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    flops = _flops(model, torch.empty(1, in_chans, image_size, image_size, device="meta"))
    of_norms = sum(flops.pop(operation, 0) for operation in _NORM_OPERATIONS)
    own = {id(p): p.numel() for norm in norms for p in norm.parameters()}
    return Counts(
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=sum(flops.values()) // 2,
        norm_layers=len(norms),
        norm_parameters=sum(own.values()),
        norm_elements=of_norms // 2,
    )


def _flops(model: nn.Module, x: Tensor) -> dict[Any, int]:
    """By operation. Raises UsageError."""
    mapping = dict.fromkeys(_NORM_OPERATIONS, _one_multiply_add)
    # Outermost the counter, which sees each operation first.
    with (
        backend.use("aten"),
        torch.no_grad(),
        _ShapesOnly(),  # type: ignore[no-untyped-call]
        FlopCounterMode(display=False, custom_mapping=mapping) as counter,
    ):
        try:
            model(x)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            if isinstance(error, UsageError):
                raise
            chans, _, size = x.shape[1:]
            raise UsageError(
                f"got images of {chans} x {size} x {size} for {type(model).__name__}, which fails: "
                f"{str(error).splitlines()[0]}. Give a size and channels that it takes"
            ) from error
    found: dict[Any, int] = counter.get_flop_counts().get("Global", {})
    return found


def _one_multiply_add(_input: Any, *_others: Any, out_shape: Any, **_options: Any) -> int:
    """Flops of a norm, from the shape of its output: the first of three."""
    return 2 * torch.Size(out_shape[0]).numel()


class _ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, what has a well-known shape is not looked up: torch does that slowly on meta."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operation, x = func.overloadpacket, args[0] if args else None
        if isinstance(x, Tensor) and x.is_meta:
            if operation in _BATCH_NORMS:
                return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
            if operation in _POINTWISE and not kwargs:
                others = [each for each in args if isinstance(each, Tensor)]
                if x.is_floating_point() and all(each.dtype is x.dtype for each in others):
                    shapes = (each.shape for each in others)
                    return x.new_empty(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device, without hooks. Raises UsageError."""
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        for kind, t in (*module._parameters.items(), *module._buffers.items()):
            if is_lazy(t):
                raise UsageError(
                    f"got {name or type(model).__name__}, whose {kind} has no shape yet; wanted a "
                    "model that ran once. Call it on an image first"
                )
            if t is not None and id(t) not in memo:
                empty = torch.empty_like(t, device="meta")
                is_parameter = isinstance(t, nn.Parameter)
                memo[id(t)] = nn.Parameter(empty, t.requires_grad) if is_parameter else empty
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            memo[id(getattr(module, kind))] = OrderedDict()
    return copy.deepcopy(model, memo)
