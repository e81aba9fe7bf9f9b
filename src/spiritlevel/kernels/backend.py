"""Which kernels run: the policy, and how to set it.

`auto` takes the fastest that computes the same numbers:

1. `aten`, torch's own, for less than 65,536 numbers, on a GPU a million: to call ours from Python
   costs more than that;
2. `cpu`, our Numba kernels, for dense float32, float64 and bfloat16 tensors on a processor;
3. `gpu`, our Triton kernels, for those and float16 on a GPU; in graphs of torch.compile, which
   merges there what it is given, `aten`;
4. `aten` for everything else, after one warning for each reason.

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
from typing import Any

import torch
from torch import Tensor

from spiritlevel.errors import UsageError

__all__ = [
    "BACKENDS",
    "MOST_SHAPES",
    "Update",
    "alike",
    "asked",
    "by_triton",
    "by_us",
    "choose",
    "fit",
    "follows",
    "layout",
    "missing",
    "number_of",
    "ours",
    "ran",
    "traced",
    "use",
]

BACKENDS = ("auto", "cpu", "aten", "reference", "gpu")
VARIABLE = "SPIRITLEVEL_KERNELS"
SMALL, SMALL_ON_A_GPU = 1 << 16, 1 << 20
MOST_SHAPES = 1 << 12
"""For how many it is kept how a tensor is cut: nets have hundreds, sentences of any length more."""
NUMBA = "0.68"
"""The kernels are kept and linked by what this version of Numba does inside."""

Update = tuple[Tensor, Tensor, float, float]
"""Running mean and variance, the share of the batch's, and the factor that makes that unbiased."""

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
    """Which of cpu, gpu, aten and reference runs, for an input and what is added to it.

    `of_channels` are weight, bias and what else has a number for each channel. Tensors that do not
    fit together go to torch's own operations, which say so. Raises UsageError.
    """
    name = asked()
    if name in ("aten", "reference"):
        return name
    few = SMALL_ON_A_GPU if x.is_cuda else SMALL
    if (
        _must_be_plain(x)
        or (name == "auto" and x.numel() < few)
        or not _has_numbers(x, of_channels)
    ):
        return "aten"
    kernels = name if name != "auto" else ours(x)
    reason = _why_not(x, residual, of_channels, kernels)
    if reason is None:
        return kernels
    if name != "auto":
        raise UsageError(f"got kernels {name!r} and {reason}; use kernels 'auto' or 'aten' for it")
    _warn(reason)
    return "aten"


def traced(x: Tensor, residual: Tensor | None, weight: Tensor | None) -> bool:
    """Whether a graph that torch.compile makes calls our kernels: where eager training would."""
    if _asked not in (None, "auto", "cpu") or torch.compiler.is_exporting() or x.numel() == 0:
        return False
    if x.is_cuda:
        return False
    reason = _why_not(x, residual, (weight,), "cpu")
    if reason is not None and x.numel() >= SMALL:
        _warn(reason)
    return reason is None


def by_us(x: Tensor, gpu: bool = False) -> bool:
    """Whether fused operations may take an input of float32 or a half, with no plain twin seen.

    `gpu`: they have kernels for a GPU too. Raises UsageError as `asked` does.
    """
    kernels = ours(x)
    there = x.device.type == "cpu" if kernels == "cpu" else gpu
    return (
        there
        and asked() in ("auto", kernels)
        and x.dtype in _FUSED[kernels]
        and x.numel() > 0
        and not _must_be_plain(x)
        and missing(kernels) is None
        and (kernels == "cpu" or (_on_gpu(x) and x.numel() // x.shape[1] <= _gpu().VALUES))
    )


def by_triton(x: Tensor) -> bool:
    """Whether the kernels of `gpu` run where x is, for those that they take."""
    return ours(x) == "gpu" and asked() in ("auto", "gpu") and missing("gpu") is None and _on_gpu(x)


def ours(x: Tensor) -> str:
    """Which of our kernels are those for x, if any are."""
    return "gpu" if x.is_cuda or asked() == "gpu" else "cpu"


def missing(kernels: str = "cpu") -> str | None:
    """Why there are no kernels of `cpu` or `gpu`, and what to do; None where there are."""
    return _missing_on_cpu() if kernels == "cpu" else _missing_on_gpu()


@cache
def _missing_on_gpu() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed: pip install 'spiritlevel[triton]'"
    try:
        kernels = import_module("spiritlevel.kernels.gpu")
    except Exception as error:  # of another version, say, whose insides are others
        return f"triton does not import ({error}): pip install 'spiritlevel[triton]'"
    if kernels.INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU here (TRITON_INTERPRET=1, set before, runs them on a processor)"
    try:
        kernels.built()
    except Exception as error:
        told = str(error).strip().partition("\n")[0]
        return (
            f"triton builds no kernel here ({told}): it wants a C compiler, Python's headers, a "
            "folder to write to (TRITON_CACHE_DIR) and a GPU that it knows"
        )
    return None


@cache
def _missing_on_cpu() -> str | None:
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
    return _has_numbers(x, of_channels) and _why_not(x, residual, of_channels, "cpu") is None


def number_of(dtype: torch.dtype) -> torch.dtype:
    """Of coefficients and sums, for elements of this type."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def follows(x: Tensor, mean: Tensor, var: Tensor) -> bool:
    """Whether the kernels which take x can update these running statistics with it."""
    number = number_of(x.dtype)
    return (
        type(mean) is type(var) is Tensor
        and mean.dtype is var.dtype is number
        and mean.is_contiguous()
        and var.is_contiguous()
        and not (x.is_cuda and number is torch.float64)  # there the share is a float32
    )


def _known(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise UsageError(f"got {where} {name!r}; wanted one of {', '.join(BACKENDS)}")
    if name in ("cpu", "gpu") and missing(name) is not None:
        raise UsageError(f"got {where} {name!r}, but {missing(name)}")
    return name


def _must_be_plain(x: Tensor) -> bool:
    return (
        type(x) not in _PLAIN
        or x.is_meta
        or x.layout is not torch.strided
        or x.is_neg()
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
    torch.float16: (torch.float16, torch.float32),
}
"""Of x, and what weight and bias may then be."""


_FUSED = {
    "cpu": (torch.float32, torch.bfloat16),
    "gpu": (torch.float32, torch.bfloat16, torch.float16),
}


def _has_numbers(x: Tensor, of_channels: Sequence[Tensor | None]) -> bool:
    """Whether there is something to do, and every channel has its numbers, where the input is."""
    if x.dim() < 2 or x.numel() == 0:
        return False
    channels, device = x.shape[1], x.device
    for t in of_channels:
        if t is not None and (t.dim() != 1 or len(t) != channels or t.device != device):
            return False
    return True


def _why_not(
    x: Tensor, residual: Tensor | None, of_channels: Sequence[Tensor | None], kernels: str
) -> str | None:
    """Why the kernels of `cpu` or `gpu` cannot take these tensors; None where they can."""
    lacking = missing(kernels)
    if lacking is not None:
        return lacking
    there = x.device.type == "cpu" if kernels == "cpu" else _on_gpu(x)
    if not there:
        return f"a tensor on {x.device.type}"
    if x.dtype not in _TYPES or (kernels == "cpu" and x.dtype is torch.float16):
        return f"{x.dtype} numbers"
    for t in of_channels[:2]:
        if t is not None and t.dtype not in _TYPES[x.dtype]:
            return f"an input of {x.dtype} with weights of another type"
    if (layout(x) if kernels == "cpu" else _gpu().layout(x)) is None:
        if kernels == "gpu" and x.numel() // x.shape[1] > _gpu().VALUES:
            return f"more than {_gpu().VALUES} values a channel"
        return "an input with gaps, or neither contiguous nor channels-last"
    if residual is not None and not alike(residual, x):
        return "a residual of another shape or type than the input"
    return None


def _gpu() -> Any:
    from spiritlevel.kernels import gpu

    return gpu


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda or (x.device.type == "cpu" and _gpu().INTERPRETED)


def alike(a: Any, b: Tensor) -> bool:
    """Of one shape, type and device. What a model adds may be a number, which torch's sum takes."""
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
