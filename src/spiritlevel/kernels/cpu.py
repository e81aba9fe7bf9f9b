"""Batch normalization on a CPU: statistics, residual add and activation in as few passes as can be.

Two layouts. *Planes* are contiguous tensors (N, C, S): a stretch of S numbers shares one channel.
*Rows* are channels-last ones, and (N, C): a stretch of C numbers has each channel once.

What each pass does, per element, with `high + low` the mean as two numbers (a float32 of 1e4 leaves
no room for a deviation of 1e-2), a = weight / sqrt(var + eps) and b = bias - low a:

    collect   sum x, then sum (x - mean)^2 of a block while it is in cache; Chan's merge in float64
    apply     y = act((x - high) a + b [+ residual])
    reduce    g = act'(...) grad;  sum g and sum g (x - high)
    descend   grad_x = a g + k2 (x - high) + k1

with k2 = -a sum(g xhat) / (M sqrt(var + eps)) and k1 = -a sum(g) / M - low k2, M the values of a
channel (Ioffe and Szegedy 2015, section 3); both are 0 in eval. Arithmetic is in float32 (float64
for float64), and every sum that outgrows a block in float64.

The batch is cut into parts, and planes into groups of channels, by shape alone, and merged in their
order: any number of threads gives the same bits. A group of planes goes through its passes while it
is in cache, so memory is read once, not once a pass.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, cached_property

import torch
from torch import Tensor

from spiritlevel.kernels import team
from spiritlevel.kernels.library import kernel
from spiritlevel.kernels.passes import DOUBLES, INTEGERS

__all__ = ["backward", "follow", "forward", "layout"]

_CACHED = 1 << 16
"""Elements of a group of planes: 256 KiB of float32, which the second cache holds."""
_PART = 1 << 17
"""Elements of a part of the rows."""
_PARTS = 64
_LANES = 256
"""Rows shorter than this are taken several at a time."""
_ALONE = 1 << 15
"""Elements that one thread has done before a second has begun."""


class Work(ctypes.Structure):
    """What a kernel is told: addresses, and how (N, C, S) is cut.

    Rows are N, each of `fold` pixels of C channels, and S is 1.
    """

    _fields_ = [(name, ctypes.c_int64) for name in INTEGERS] + [
        (name, ctypes.c_double) for name in DOUBLES
    ]


def layout(x: Tensor) -> str | None:
    """Rows or planes, whichever (N, C, *) is in memory; None with gaps or in another order."""
    if x.dim() < 2:
        return None
    if x.is_contiguous():
        return "rows" if x.shape[2:].numel() == 1 else "planes"
    return "rows" if x.movedim(1, -1).is_contiguous() else None


class _Plan:
    """All that is known of a pass from the shape and type of its input."""

    def __init__(self, shape: torch.Size, rows: bool, dtype: torch.dtype) -> None:
        N, C, S = shape[0], shape[1], shape[2:].numel()
        self.rows, self.size, self.C = rows, N * C * S, C
        self.kind = _KINDS[dtype]
        self.number = torch.float64 if dtype is torch.float64 else torch.float32
        if rows:
            N, S = N * S, 1
            fold = max(k for k in range(1, max(1, _LANES // C) + 1) if N % k == 0)
            N //= fold
            parts = min(_PARTS, -(-self.size // _PART))
            group = C
        else:
            fold = 1
            group = min(max(1, _CACHED // (N * S)), -(-C // 16))
            parts = -(-16 // C) if C < 16 else 1
        part = -(-N // parts)
        parts = -(-N // part)
        self.chunks = parts * -(-C // group)
        self.whole = parts == 1 and not rows
        self.cut = {"rows": rows, "N": N, "C": C, "S": S, "fold": fold}
        self.cut |= {"part": part, "parts": parts, "group": group}
        # Float64 numbers: two for each lane and part, then five coefficients for each lane.
        self.partials = 2 * parts * C * fold
        self.scratch = self.partials + 5 * C * fold

    def kernel(self, step: str, act: str = "identity", add: str = "") -> int:
        return kernel(step, self.rows, self.kind, act, add)

    def once(self, step: str) -> int:
        """What is done once a channel is the same for both layouts."""
        return kernel(step, False, self.kind, "identity", "")

    @cached_property
    def template(self) -> bytes:
        return bytes(Work(**self.cut, chunks=self.chunks))


@cache
def _plan(shape: torch.Size, rows: bool, dtype: torch.dtype) -> _Plan:
    return _Plan(shape, rows, dtype)


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    eps: float,
    statistics: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """act(bn(x) + residual), and the mean and biased variance it took: float64, (C,).

    x (N, C, *) in a `layout`, float32, float64 or bfloat16, not empty; residual like x, to the
    strides; weight and bias (C,). `statistics` are float64 and taken in the batch's place (eval).
    """
    plan = _plan(x.shape, layout(x) == "rows", x.dtype)
    y = torch.empty_like(x)
    mean, var = statistics or (_doubles(plan.C), _doubles(plan.C))
    call = _Call(plan, x, weight, bias, mean, var, slope, eps, statistics is None)
    work, add = call.work, ""
    work.y = y.data_ptr()
    if residual is not None:
        work.residual, add = residual.data_ptr(), "add"
    if statistics is not None:
        call.once("prepare")
        call.each("apply", act, add)
    elif plan.whole:
        call.each("forward", act, add)
    else:
        call.each("collect", backwards=True)
        call.once("settle")
        call.each("apply", act, add)
    return y, mean, var


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    mean: Tensor,
    var: Tensor,
    act: str,
    slope: float,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias, both (C,) in the type of the sums, and of the residual.

    Of the residual itself, or of y where the activation is a relu, only what tells its slope is
    read. Without an activation its gradient is `grad`, and None here.
    """
    plan = _plan(x.shape, layout(x) == "rows", x.dtype)
    grad_x, grad_residual = torch.empty_like(x), None
    grad_weight = torch.empty(plan.C, dtype=plan.number)
    grad_bias = torch.empty(plan.C, dtype=plan.number)
    call = _Call(plan, x, weight, bias, mean, var, slope, eps, training)
    work, add = call.work, ""
    work.grad, work.grad_x = grad.data_ptr(), grad_x.data_ptr()
    work.grad_weight, work.grad_bias = grad_weight.data_ptr(), grad_bias.data_ptr()
    through = residual if y is None else y
    if through is not None:
        grad_residual, add = torch.empty_like(x), "add" if y is None else "mask"
        work.residual, work.grad_residual = through.data_ptr(), grad_residual.data_ptr()
    if plan.whole:
        call.each("backward", act, add)
        return grad_x, grad_weight, grad_bias, grad_residual
    call.once("prepare")
    call.each("reduce", act, add)
    call.once("settle_sums")
    if grad_residual is not None:  # it has the activation's slope in it by now
        work.grad, act, add = work.grad_residual, "identity", ""
    call.each("descend", act, add, backwards=True)
    return grad_x, grad_weight, grad_bias, grad_residual


def follow(running: Sequence[Tensor], batch: Sequence[Tensor], share: float, factor: float) -> None:
    """Running mean and variance go by a share towards the batch's; the variance times `factor`.

    All are (C,); the running ones float32 or float64 and contiguous, the batch's float64. Autograd
    is told that they changed.
    """
    mean, var = running
    work = Work(C=len(mean), group=len(mean), chunks=1, share=share, factor=factor)
    work.mean, work.var = batch[0].data_ptr(), batch[1].data_ptr()
    work.running_mean, work.running_var = mean.data_ptr(), var.data_ptr()
    team.run(kernel("follow", False, _KINDS[mean.dtype], "identity", ""), work, 1)
    torch.autograd.graph.increment_version(running)


def _doubles(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.float64)


_KINDS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}


class _Call:
    """One forward or backward pass: its work, and the tensors that nobody else keeps."""

    def __init__(
        self,
        plan: _Plan,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        slope: float,
        eps: float,
        training: bool,
    ) -> None:
        self.plan = plan
        self.team = 1 if plan.size < _ALONE else min(team.threads(), plan.chunks)
        self.work = work = Work.from_buffer_copy(plan.template)
        self.scratch = _doubles(plan.scratch)
        work.partials = self.scratch.data_ptr()
        work.coefficients = work.partials + 8 * plan.partials
        work.x, work.mean, work.var = x.data_ptr(), mean.data_ptr(), var.data_ptr()
        work.eps, work.slope, work.training = eps, slope, training
        if weight is not None:
            self.weight = _numbers(weight, plan.number)
            work.weight = self.weight.data_ptr()
        if bias is not None:
            self.bias = _numbers(bias, plan.number)
            work.bias = self.bias.data_ptr()

    def each(
        self, step: str, act: str = "identity", add: str = "", backwards: bool = False
    ) -> None:
        """The step for each chunk, on every thread; backwards where the last was used just now."""
        work = self.work
        work.next, work.backwards = 0, backwards
        team.run(self.plan.kernel(step, act, add), work, self.team)

    def once(self, step: str) -> None:
        """The step for all channels, on this thread."""
        work, plan = self.work, self.plan
        work.next, work.chunks, work.group = 0, 1, plan.C
        team.run(plan.once(step), work, 1)
        work.chunks, work.group = plan.chunks, plan.cut["group"]


def _numbers(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype is dtype and t.is_contiguous() else t.to(dtype).contiguous()
