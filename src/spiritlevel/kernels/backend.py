"""Which kernels run: the policy, and how to set it.

`auto` takes the fastest that computes the same numbers:

1. `aten`, torch's own, for less than 65,536 numbers: to call ours from Python costs more than that;
2. `cpu`, our Numba kernels, for dense float32, float64 and bfloat16 tensors on a processor;
3. `aten` for everything else, after one warning for each reason.

`reference` is the paper's formula in plain torch. Kernels that were asked for by name are taken, or
UsageError says why they cannot. What must see plain torch operations (tracing, export, functional
transforms, forward-mode differentiation, dispatch modes, tensor subclasses) sees `aten`'s, without
a warning: nothing else would be right there.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor

from spiritlevel.errors import UsageError

__all__ = [
    "BACKENDS",
    "asked",
    "batched",
    "by_us",
    "choose",
    "fit",
    "follows",
    "layout",
    "missing",
    "ran",
    "traced",
    "use",
]

BACKENDS = ("auto", "cpu", "aten", "reference", "gpu")
VARIABLE = "SPIRITLEVEL_KERNELS"
SMALL = 1 << 16
NUMBA = "0.68"
"""The kernels are kept and linked by what this version of Numba does inside."""


ran: Counter[str] = Counter()
"""How often each backend ran a forward pass in this process."""


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run these kernels, in the whole process, until the block ends. Raises UsageError.

    A backward pass runs the kernels of its forward pass, whatever is set by then.
    """
    global _asked
    before, _asked = _asked, _known(name, "kernels.use")
    try:
        yield
    finally:
        _asked = before


def asked() -> str:
    """What `use` or the variable SPIRITLEVEL_KERNELS asks for; "auto" where neither does."""
    return _asked or _known(os.environ.get(VARIABLE) or "auto", VARIABLE)


def choose(x: Tensor, residual: Tensor | None, *of_channels: Tensor | None) -> str:
    """Which of cpu, aten and reference runs, for an input and what is added to it.

    `of_channels` are weight, bias and what else has a number for each channel. Tensors that do not
    fit together go to torch's own operations, which say so. Raises UsageError.
    """
    name = asked()
    if name in ("aten", "reference"):
        return name
    if _must_be_plain(x) or (name == "auto" and x.numel() < SMALL) or not _fit(x, of_channels):
        return "aten"
    reason = _unfit(x, residual, of_channels)
    if reason is None:
        return "cpu"
    if name == "cpu":
        raise UsageError(f"got kernels 'cpu' and {reason}; use kernels 'auto' or 'aten' for it")
    _warn(reason)
    return "aten"


def traced(x: Tensor, residual: Tensor | None, weight: Tensor | None) -> bool:
    """Whether a graph that torch.compile makes calls our kernels: where eager training would."""
    if _asked not in (None, "auto", "cpu") or torch.compiler.is_exporting() or x.numel() == 0:
        return False
    reason = _unfit(x, residual, (weight,))
    if reason is not None and x.numel() >= SMALL:
        _warn(reason)
    return reason is None


def by_us(x: Tensor) -> bool:
    """Whether fused operations may take an input of float32 or bfloat16, with no plain twin seen.

    Raises UsageError as `asked` does.
    """
    return (
        asked() in ("auto", "cpu")
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and not _must_be_plain(x)
        and missing() is None
    )


def batched(grad: Tensor) -> bool:
    """Whether it stands for many gradients at once, as in a Jacobian, and has no memory to read."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)


def missing() -> str | None:
    """Why there are no kernels of `cpu`, and what to do; None where there are."""
    return _missing()


@cache
def _missing() -> str | None:
    if find_spec("numba") is None:
        return "numba is not installed: pip install 'spiritlevel[cpu]'"
    try:
        found = version("numba")
        if not found.startswith(f"{NUMBA}."):
            return f"numba is {found}, not {NUMBA}: pip install 'spiritlevel[cpu]'"
        import_module("spiritlevel.kernels.cpu")
    except Exception as error:  # Numba refuses a NumPy that is too new, each version in its way
        return f"numba does not import ({error}): pip install 'spiritlevel[cpu]'"
    return None


def layout(x: Tensor) -> str | None:
    """Rows or planes, whichever (N, C, *) is in memory; None with gaps or in another order."""
    if x.is_contiguous():
        return None if x.dim() < 2 else "planes" if x.dim() > 2 else "rows"
    return "rows" if x.dim() > 2 and x.movedim(1, -1).is_contiguous() else None


def fit(x: Tensor, residual: Tensor | None, *of_channels: Tensor | None) -> bool:
    """Whether the kernels of `cpu` can take these tensors."""
    return _fit(x, of_channels) and _unfit(x, residual, of_channels) is None


def follows(x: Tensor, mean: Tensor, var: Tensor) -> bool:
    """Whether the kernels of `cpu`, which take x, can update these running statistics with it."""
    number = torch.float64 if x.dtype is torch.float64 else torch.float32
    return (
        type(mean) is type(var) is Tensor
        and mean.dtype is var.dtype is number
        and mean.is_contiguous()
        and var.is_contiguous()
    )


def _known(name: str, where: str) -> str:
    if name == "gpu":
        raise UsageError(f"got {where} 'gpu'; this version has no kernels for a GPU: use 'auto'")
    if name not in BACKENDS:
        raise UsageError(f"got {where} {name!r}; wanted one of {', '.join(BACKENDS)}")
    if name == "cpu" and missing() is not None:
        raise UsageError(f"got {where} 'cpu', but {missing()}")
    return name


def _must_be_plain(x: Tensor) -> bool:
    return (
        type(x) not in _PLAIN
        or x.is_meta
        or x.layout is not torch.strided
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


_CPU = torch.device("cpu")
_PLAIN = (Tensor, torch.nn.Parameter)
_TYPES = {
    torch.float32: (torch.float32,),
    torch.float64: (torch.float64,),
    torch.bfloat16: (torch.bfloat16, torch.float32),
}
"""Of x, and what weight and bias may then be."""


def _fit(x: Tensor, of_channels: Sequence[Tensor | None]) -> bool:
    """Whether there is something to do, and every channel has its numbers, where the input is."""
    if x.dim() < 2 or x.numel() == 0:
        return False
    channels, device = x.shape[1], x.device
    for t in of_channels:
        if t is not None and (t.dim() != 1 or len(t) != channels or t.device != device):
            return False
    return True


def _unfit(x: Tensor, residual: Tensor | None, of_channels: Sequence[Tensor | None]) -> str | None:
    """Why the kernels of `cpu` cannot take these tensors; None where they can."""
    lacking = missing()
    if lacking is not None:
        return lacking
    if x.device.type != "cpu":
        return f"a tensor on {x.device.type}"
    if x.dtype not in _TYPES:
        return f"{x.dtype} numbers"
    for t in of_channels[:2]:
        if t is not None and t.dtype not in _TYPES[x.dtype]:
            return f"an input of {x.dtype} with weights of another type"
    if layout(x) is None:
        return "an input with gaps, or neither contiguous nor channels-last"
    if residual is not None and not _alike(residual, x):
        return "a residual of another shape or type than the input"
    return None


def _alike(a: Tensor, b: Tensor) -> bool:
    # What a model adds may be a number, too, which torch's own sum takes.
    return isinstance(a, Tensor) and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _warn(reason: str) -> None:
    _warn_once(reason)


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"batch normalization runs on torch's own kernels, which are slower, for {reason}",
        stacklevel=7,
    )


for _each in (missing, _warn):  # torch.compile runs them while it traces, and keeps the answer
    _each.__dict__["_dynamo_marked_constant"] = True


_asked: str | None = None
