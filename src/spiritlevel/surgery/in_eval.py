"""What a norm layer does in eval: y = rest(x * factor + shift), a pair of numbers a channel.

Whether a layer does that is not told by its name: it is given numbers, and what it makes of them is
compared; one whose forward is not torch's or ours must be a graph without choices, too. So batch
norms of other libraries that end in an activation, or that were frozen by hand, are known for what
they compute.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import Activation, module_of
from spiritlevel.nn.affine import factor_and_shift
from spiritlevel.surgery.tracer import layer, touched, traced_in

__all__ = ["InEval", "OfRank", "Rest", "in_eval", "is_norm"]


@dataclass(frozen=True)
class InEval:
    """`factor` and `shift` (C,) are float64; `rest` is a module that does what comes after."""

    factor: Tensor
    shift: Tensor
    rest: nn.Module

    @property
    def plain(self) -> bool:
        return type(self.rest) is nn.Identity


class Rest(nn.Module):
    """act(x + residual): what stays of a fused batch norm that adds."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.act(x if residual is None else x + residual)

    def extra_repr(self) -> str:
        return f"act={self.act}"


class OfRank(nn.Identity):
    """What is left of a norm beside a linear layer: a tensor of another rank has its channels
    elsewhere, and raises ValueError."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Tensor) and input.dim() != self.rank:
            raise ValueError(f"expected {self.rank}D input (got {input.dim()}D input)")
        return input

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


def is_norm(module: nn.Module) -> bool:
    """Whether it holds a running mean and variance, or is a batch norm without them."""
    held = {name for name, _ in module.named_buffers(recurse=False)}
    return isinstance(module, _BatchNorm) or {"running_mean", "running_var"} <= held


def in_eval(norm: nn.Module, *, adds: bool = False) -> InEval | str:
    """What the layer does in eval, or why that is no factor and shift.

    `adds` tells that it is also called with a residual.
    """
    if why := _why_not(norm):
        return why
    factor, shift = factor_and_shift(norm)
    if not bool((factor.isfinite() & shift.isfinite()).all()):
        return "has running statistics or weights that are not finite, or a negative variance"
    found = InEval(factor, shift, _rest(norm, adds))
    return _compared(norm, found) or found


def _why_not(norm: nn.Module) -> str | None:
    if any(is_lazy(t) for t in (*norm.parameters(), *norm.buffers())):
        return "is lazy; run the model once before"
    if parametrize.is_parametrized(norm):
        return "is parametrized"
    if why := touched(norm):
        return why
    if type(norm).__call__ is not nn.Module.__call__:
        return f"is a {type(norm).__name__}, which is called in a way of its own"
    if getattr(norm, "running_mean", None) is None or getattr(norm, "running_var", None) is None:
        return "has no running statistics: it takes those of the batch in eval(), too"
    if norm.training and isinstance(norm, _BatchNorm):
        return "stays in training after eval()"
    return None


def _rest(norm: nn.Module, adds: bool) -> nn.Module:
    act = getattr(norm, "act", None)
    if isinstance(act, Activation):
        return Rest(act) if adds else module_of(act)
    children = [child for child in norm.children() if type(child) is not nn.Identity]
    if not children:
        return nn.Identity()
    return children[0] if len(children) == 1 else nn.Sequential(*children)


@torch.no_grad()
def _compared(norm: nn.Module, found: InEval) -> str | None:
    """Why the layer is not what it was taken for, seen on numbers."""
    other = f"is a {type(norm).__name__} that does more in eval() than scale and shift"
    known = _is_known(type(norm))
    try:
        if not known:  # a choice by shape or value is one that no numbers may show
            traced_in(norm, layer, training=False)
        exact = copy.deepcopy(norm).double().cpu()
        rest = copy.deepcopy(found.rest).double().cpu()
        probes = [(2, 3, 1.0)] if known else product((1, 2, 3), (1, 4), (1e-3, 1.0, 1e6))
        alike = all(_same(exact, rest, found, *probe) for probe in probes)
    except Exception:
        return other
    return None if alike else other


def _is_known(kind: type[nn.Module]) -> bool:
    """Whether its forward is torch's own, or ours."""
    home = next(each for each in kind.__mro__ if "forward" in vars(each)).__module__
    return home.startswith(("torch.nn.modules.", "spiritlevel.nn."))


def _same(
    norm: nn.Module, rest: nn.Module, found: InEval, samples: int, positions: int, size: float
) -> bool:
    """On numbers that come out as large as `size`, lest a small shift or a bound go unnoticed."""
    factor, shift = found.factor.cpu(), found.shift.cpu()
    shape = (samples, len(factor), *[positions] * _positions(norm))
    view = (1, -1, *[1] * (len(shape) - 2))
    generator = torch.Generator().manual_seed(0)
    x = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    x = (x - shift.view(view)) / torch.where(factor == 0, 1.0, factor).view(view)
    with backend.use("aten"):
        y = norm(x.clone())
    wanted = rest(x * factor.view(view) + shift.view(view))
    # A rounding of the product, where the shift takes most of it away again.
    tolerance = 1e-9 * max(size, 1.0) + 1e-13 * float(shift.abs().max())
    alike = isinstance(y, Tensor) and y.shape == wanted.shape
    return alike and torch.allclose(y, wanted, rtol=0, atol=tolerance)


def _positions(norm: nn.Module) -> int:
    """Axes behind the channels that the layer takes."""
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        return int(norm._get_no_batch_dim()) - 1  # type: ignore[no-untyped-call]
    if isinstance(norm, nn.BatchNorm1d):
        return 1
    return 3 if isinstance(norm, nn.BatchNorm3d) else 2
