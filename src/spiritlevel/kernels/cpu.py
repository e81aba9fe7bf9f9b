"""Batch normalization on a CPU: statistics, residual add and activation in as few passes as can be.

Two layouts. *Planes* are contiguous tensors (N, C, S): a stretch of S numbers shares one channel.
*Lanes* are rows in which each column belongs to one channel: channels-last tensors, (N, C), and
contiguous ones whose S is small.

What each pass does, per element, with `high + low` the mean as two numbers (a float32 of 1e4 leaves
no room for a deviation of 1e-2), a = weight / sqrt(var + eps) and b = bias - low a:

    collect   sum x, then sum (x - mean)^2 of a block while it is in cache; Chan's merge in float64
    apply     y = act((x - high) a + b [+ residual])
    reduce    g = act'(...) grad;  sum g and sum g (x - high)
    descend   grad_x = a g + k2 (x - high) + k1

with k2 = -a sum(g xhat) / (M sqrt(var + eps)) and k1 = -a sum(g) / M - low k2, M the values of a
channel (Ioffe and Szegedy 2015, section 3); both are left out in eval. Arithmetic is in float32
(float64 for float64), and every sum that outgrows a block in float64.

The batch is cut into parts, and what is contiguous into groups of channels, by shape alone, and
merged in their order: any number of threads gives the same bits. A group goes through its passes
while it is in cache, so memory is read once, not once a pass. What is too large for any cache to
keep until it is read again is written past it.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from spiritlevel.kernels import team
from spiritlevel.kernels.backend import MOST_SHAPES, Update, number_of
from spiritlevel.kernels.formulas import emptied_by_add
from spiritlevel.kernels.library import kernel, step
from spiritlevel.kernels.passes import DOUBLES, INTEGERS

__all__ = ["backward", "descended", "forward", "reduced", "statistics"]

Stage = tuple[int, int, int, bool]
"""The address of a step, how many chunks, of how many channels, and whether from the last back."""

_CACHED = 1 << 16
"""Elements of a group of planes: 256 KiB of float32, which the second cache holds."""
_PART = 1 << 17
"""Elements of a part of the lanes."""
_PARTS = 64
_LANES = 256
"""Rows shorter than this are taken several at a time."""
_FEW = 256
"""Planes smaller than this are taken as lanes: a loop over one is mostly its beginning and end."""
_MANY = 16
"""Samples from which on: each lane has sums of its own."""
_CHANNELS = 128
"""Channels whose coefficients one thread has found before a second has begun."""
_ALONE = 1 << 15
"""Elements that one thread has done before a second has begun."""
_UNCACHED = 1 << 22
"""Bytes of a tensor that is written past the cache, which saves reading the line before."""


class _Plan:
    """All that is known of a pass from the shape and type of its input."""

    def __init__(self, shape: torch.Size, rows: bool, dtype: torch.dtype) -> None:
        N, C, S = shape[0], shape[1], shape[2:].numel()
        self.size, self.C, self.kind = N * C * S, C, _KINDS[dtype]
        self.number = number_of(dtype)
        fold = spread = 1
        rows = rows or S == 1
        if rows:
            N, S = N * S, 1
            fold = max(k for k in range(1, max(1, _LANES // C) + 1) if N % k == 0)
            N //= fold
            parts, group = min(_PARTS, -(-self.size // _PART)), C
        else:
            parts = -(-16 // C) if C < 16 else 1
            group = min(max(1, _CACHED // (N * S)), -(-C // 16))
            if S < _FEW and N >= _MANY:
                spread, S = S, 1
        self.layout = "lanes" if rows or spread > 1 else "planes"
        part = -(-N // parts)
        parts = -(-N // part)
        self.group, self.chunks, self.whole = group, parts * -(-C // group), parts == 1
        lanes, by_lane = C * fold * spread, self.layout == "lanes"
        # float64 numbers of scratch: sums of parts, coefficients, and for lanes sums of a block.
        needs = (2 * parts * lanes, 5 * lanes, 3 * parts * lanes if by_lane else 0)
        *offsets, self.doubles = accumulate(needs, initial=0)
        self.offsets = [8 * offset for offset in offsets]
        self.cut = (N, C, S, fold, spread, part, parts)
        # Each stretch begins on a whole vector of 32 bytes.
        stretch, size = (group * spread if group < C else lanes) if by_lane else S, dtype.itemsize
        whole = stretch * size % 32 == 0 and (not by_lane or lanes * size % 32 == 0)
        self.past_cache = whole and self.size * size >= _UNCACHED
        self.team = 1 if self.size < _ALONE else self.chunks
        self.writing = " past the cache" if self.past_cache else ""

    def each(self, name: str, act: str = "identity", add: str = "", *, back: bool = False) -> Stage:
        """A pass over each chunk, from the last one back where that was used just now."""
        if name in ("apply", "descend"):
            name += self.writing
        return step(name, self.layout, self.kind, act, add), self.chunks, self.group, back

    def once(self, name: str) -> Stage:
        """What is done once a channel."""
        address = step(name, "channels", self.kind, "identity", "")
        if self.whole:
            return address, self.chunks, self.group, False
        return address, -(-self.C // _CHANNELS), _CHANNELS, False

    def stages(self, what: str, act: str, add: str) -> list[Stage]:
        back = not self.whole
        if what == "forward":
            apply = self.each("apply", act, add)
            return [self.each("collect", back=back), self.once("settle"), apply]
        if what == "eval":
            return [self.once("prepare"), self.each("apply", act, add)]
        if what == "statistics":
            return [self.each("collect"), self.once("settle")]
        # A residual's gradient has the activation's slope in it, once it is reduced.
        of = ("identity", "add") if add else (act, "")
        if what == "descend":
            return [self.once("prepare"), self.once("settle_given"), self.each("descend", *of)]
        sums = [self.once("prepare"), self.each("reduce", act, add), self.once("settle_sums")]
        return sums if what == "reduce" else [*sums, self.each("descend", *of, back=back)]


@lru_cache(MOST_SHAPES)
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
    running: Update | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """act(bn(x) + residual), and the mean and biased variance it took: float64, (C,).

    x (N, C, *) in a `backend.layout`, float32, float64 or bfloat16, not empty; residual like x, to
    the strides; weight and bias (C,). `statistics` are float64, taken in the batch's place (eval).
    `running` are changed in place, contiguous and of the type `number_of` x's. Autograd is not
    told, as torch does not tell it.
    """
    plan = _plan(x.shape, not x.is_contiguous(), x.dtype)
    y = torch.empty_like(x)
    mean, var = statistics or [torch.empty(plan.C, dtype=torch.float64) for _ in range(2)]
    running_mean, running_var, share, factor = running or (None, None, 0.0, 1.0)
    what, add = "forward" if statistics is None else "eval", "" if residual is None else "add"
    weight, bias = _numbers(weight, plan), _numbers(bias, plan)
    tensors = (x, y, residual, weight, bias, mean, var, running_mean, running_var)
    _run(plan, _begin(plan, what, act, add), tensors, True, eps, slope, share, factor)
    return y, mean, var


def statistics(x: Tensor, running: Update | None = None) -> tuple[Tensor, Tensor]:
    """The mean and biased variance that `forward` takes of the same x: float64, (C,).

    `running` are changed in place, as there.
    """
    plan = _plan(x.shape, not x.is_contiguous(), x.dtype)
    mean, var = (torch.empty(plan.C, dtype=torch.float64) for _ in range(2))
    running_mean, running_var, share, factor = running or (None, None, 0.0, 1.0)
    tensors = (x, None, None, None, None, mean, var, running_mean, running_var)
    begin = _begin(plan, "statistics", "identity", "")
    _run(plan, begin, tensors, True, 0.0, 0.0, share, factor)
    return mean, var


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
    grad_x = torch.empty_like(x)
    channels, through = (weight, bias, mean, var), residual if y is None else y
    add = "" if through is None else "add" if y is None else "mask"
    found = _back("backward", grad, x, grad_x, channels, through, add, act, slope, eps, training)
    return grad_x, *found


def reduced(
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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `backward` gives, without the gradient of x: for a batch that is a part of one."""
    channels, through = (weight, bias, mean, var), residual if y is None else y
    add = "" if through is None else "add" if y is None else "mask"
    return _back("reduce", grad, x, None, channels, through, add, act, slope, eps, True)


def descended(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    grad_residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    act: str,
    slope: float,
    eps: float,
    grad_weight: Tensor,
    grad_bias: Tensor,
    count: float,
) -> Tensor:
    """The gradient of x, given those of weight and bias over all `count` values of a channel.

    `grad_residual` is that of `reduced`, None where it gave none; the two of weight and bias are
    contiguous and of the type `number_of` x's.
    """
    plan = _plan(x.shape, not x.is_contiguous(), x.dtype)
    grad_x, add = torch.empty_like(x), "" if grad_residual is None else "add"
    channels = (_numbers(weight, plan), _numbers(bias, plan), mean, var)
    sums = (grad, grad_residual, grad_weight, grad_bias)
    tensors = (x, grad_x, None, *channels, None, None, *sums)
    _run(plan, _begin(plan, "descend", act, add), tensors, True, eps, slope, count=count)
    return grad_x


def _back(
    what: str,
    grad: Tensor,
    x: Tensor,
    grad_x: Tensor | None,
    channels: tuple[Tensor | None, ...],
    through: Tensor | None,
    add: str,
    act: str,
    slope: float,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of weight, bias and residual; that of x goes where `grad_x` is."""
    plan = _plan(x.shape, not x.is_contiguous(), x.dtype)
    grad_weight, grad_bias = (torch.empty(plan.C, dtype=plan.number) for _ in range(2))
    grad_residual = None if through is None else torch.empty_like(x)
    weight, bias, mean, var = channels
    tensors = (x, grad_x, through, _numbers(weight, plan), _numbers(bias, plan), mean, var)
    sums = (grad, grad_residual, grad_weight, grad_bias)
    _run(plan, _begin(plan, what, act, add), (*tensors, None, None, *sums), training, eps, slope)
    return grad_weight, grad_bias, grad_residual


_KINDS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
_HEAD = struct.Struct(f"{INTEGERS.index('x')}q")
_TENSORS = INTEGERS.index("partials") - INTEGERS.index("x")
_MORE = (0,) * (len(INTEGERS) - INTEGERS.index("parts") - 1)
_WORK = struct.Struct(f"{_HEAD.size}s{len(INTEGERS) - INTEGERS.index('x')}q{len(DOUBLES)}d")
_Buffer = ctypes.c_char * _WORK.size


@emptied_by_add
@lru_cache(MOST_SHAPES)
def _begin(plan: _Plan, what: str, act: str, add: str) -> bytes:
    """What the work of a call begins with: its stages, and whether a chunk has all at once."""
    stages = plan.stages(what, act, add)
    numbers = [number for stage in stages for number in (0, 0, *stage)]
    numbers += [0] * (INTEGERS.index("steps") - len(numbers))
    return _HEAD.pack(*numbers, len(stages), plan.whole and what in ("forward", "backward"))


def _run(
    plan: _Plan,
    begin: bytes,
    tensors: tuple[Tensor | None, ...],
    training: bool,
    eps: float,
    slope: float,
    share: float = 0.0,
    factor: float = 1.0,
    count: float = 0.0,
) -> None:
    """Run the stages on these tensors, which are in the order of `INTEGERS`."""
    at = [0 if t is None else t.data_ptr() for t in tensors] + [0] * (_TENSORS - len(tensors))
    scratch = torch.empty(plan.doubles, dtype=torch.float64)
    start, offsets, buffer = scratch.data_ptr(), plan.offsets, _Buffer()
    numbers = (*at, *[start + offset for offset in offsets], training, *plan.cut, *_MORE)
    _WORK.pack_into(buffer, 0, begin, *numbers, eps, slope, share, factor, count, 0.0)
    team.run(kernel(), ctypes.addressof(buffer), min(team.threads(), plan.team))


def _numbers(t: Tensor | None, plan: _Plan) -> Tensor | None:
    if t is None or (t.dtype is plan.number and t.is_contiguous()):
        return t
    return t.to(plan.number).contiguous()
