"""Batch normalization on a GPU, in Triton: what `cpu` computes, cut for thousands of threads.

Four passes, which `gpu_passes` has; per element, with the letters of `cpu`:

    collect   sum (x - pivot) and its square, in parts; the last part to end merges them (Chan)
    apply     y = act((x - high) a + b [+ residual])
    reduce    g = act'(...) grad;  sum g and sum g (x - high), merged alike
    descend   grad_x = a g + k2 (x - high) + k1

so that training reads x twice and writes y; backward reads x and the gradient twice and writes one.
Arithmetic and sums are in float32 (float64 for float64), whatever the type of x; the mean is two
numbers. What a program reads follows from shape, type, device and what `gpu_launch` keeps of them:
two runs give the same bits.

Tensors are contiguous or channels-last, or slices of such along the channels: that is how the
halves of a Ghost module are written where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spiritlevel.kernels import gpu_passes
from spiritlevel.kernels.backend import MOST_SHAPES, Update, number_of
from spiritlevel.kernels.gpu_launch import (
    FUSED,
    INTERPRETED,
    Plan,
    Way,
    launch,
    moments,
    multiprocessors,
    scratch,
)

__all__ = [
    "INTERPRETED",
    "MOST",
    "VALUES",
    "backward",
    "built",
    "descended",
    "forward",
    "lanes_of",
    "layout",
    "merged",
    "reduced",
    "rows",
    "statistics",
    "way",
]

_WIDEST = 512
"""Lanes of a row."""
_NARROW = 64
"""Lanes that a row has at least, where positions can be set side by side: 128 bytes of halves."""
MOST = 65535
"""Programs that a GPU takes on an axis other than the first: of planes, or of groups."""
VALUES = 1 << 30
"""Of a channel: rows are counted in 32 bits, and a part may end beyond the last."""
_WIDER = 2
"""Times as wide as a slice of its channels a tensor may be: `WIDE` counts on it."""
_TILE, _WARPS = 4096, 8
"""Numbers of a tile, and of warps that share it."""
_MERGED = 2048
"""Sums that are merged at once: more would take registers from the passes themselves."""
_MERGED_AT_ONCE = 128
"""Channels whose ranks a program merges."""
_SUMMED = ((2, 1), (1, 1), (2, 3), (4, 1))
"""Programs a multiprocessor, and tiles under way at once, of which all but one are read ahead, into
shared memory; first what is best for most shapes. The more programs have sums, the more there is to
merge."""
_WRITTEN = (32, 8)
"""Programs a multiprocessor that have none."""


class Layout(NamedTuple):
    planes: bool
    outer: int
    """From a position to the next, in channels; in planes, from a sample to the next, in planes."""


@lru_cache(MOST_SHAPES)
def _layout(shape: torch.Size, strides: tuple[int, ...]) -> Layout | None:
    if len(shape) < 2:
        return None
    C, inside = shape[1], list(zip(shape[2:], strides[2:], strict=True))
    sides = [(size, step) for size, step in inside if size > 1]
    S, N = math.prod(shape[2:]), shape[0]
    if N * S > VALUES:
        return None
    if S > 1 and (C == 1 or strides[1] == S) and _dense(sides, 1):
        outer = strides[0] if N > 1 else C * S
        fits = outer % S == 0 and C <= MOST and outer <= _WIDER * C * S
        return Layout(True, outer // S) if fits else None
    positions = [(N, strides[0])] * (N > 1) + sides
    if C > 1 and strides[1] != 1:
        return None
    step = positions[-1][1] if positions else C
    fits = C <= step <= _WIDER * C and step % math.gcd(C, 16) == 0
    return Layout(False, step) if fits and _dense(positions, step) else None


def _dense(axes: Sequence[tuple[int, int]], step: int) -> bool:
    for size, stride in reversed(axes):
        if stride != step:
            return False
        step *= size
    return True


def layout(x: Tensor) -> Layout | None:
    """Where the positions and channels of (N, C, *) are; None where the kernels cannot say."""
    return None if x.is_neg() else _layout(x.shape, x.stride())


class _Plan(Plan):
    """How tensors of a shape, layout and type are cut."""

    def __init__(self, shape: torch.Size, planes: bool, dtype: torch.dtype, groups: int) -> None:
        N, C, sides = shape[0], shape[1], shape[2:].numel()
        self.C, self.groups, self.values = C, groups, N * sides // groups
        S, K, unit, inner = sides, 1, 1, 1
        if planes:
            block, positions = 1, N
        else:
            unit = math.gcd(C, 16)
            S = sides if groups > 1 else 1
            positions, inner = N * sides // groups // S, C // unit
            K, block = (1, lanes_of(C)) if S > 1 else _side_by_side(C)
        self.unit, self.planes, self.step = unit, planes, groups * S if S > 1 and not planes else 1
        number = number_of(dtype)
        rows, cut = -(-positions * S // K), (positions, C // unit, K, inner)
        high = min(max(1, _TILE // block), triton.next_power_of_2(rows))
        how = {
            "PLANES": planes,
            "S": S,
            "UNIT": unit,
            "WIDE": shape.numel() * 2 >= 1 << 31,
            "FOLD": triton.next_power_of_2(K),
            "CHANNELS": triton.next_power_of_2(C) if K > 1 else block,
            "BLOCK_R": high,
            "BLOCK_C": block,
            "ACC": tl.float64 if number is torch.float64 else tl.float32,
            "num_warps": max(1, min(_WARPS, high * block // 128)),
        }
        across = -(-C * K // block), groups
        summed = [
            way(rows, across, cut, how | {"STAGES": stages}, programs)
            for programs, stages in _SUMMED
        ]
        written = [way(rows, across, cut, how, programs) for programs in _WRITTEN]
        name = f"{'x'.join(map(str, shape))} {'planes' if planes else 'lanes'} {groups}"
        super().__init__(name, shape.numel(), C * K * groups, number, summed, written)

    def outer(self, t: Tensor) -> int:
        """How far the tensor's samples are apart, or its positions, in the kernels' unit."""
        found = layout(t)
        assert found is not None, "the backend takes no other"
        alone = self.C == 1 and t.is_contiguous()  # planes and lanes at once
        assert found.planes is self.planes or alone, "cut alike"
        return found.outer * self.step // self.unit


def way(
    rows: int, across: tuple[int, int], cut: tuple[int, ...], how: dict[str, Any], programs: int
) -> Way:
    """Rows in parts of whole tiles, such that there are so many programs a multiprocessor."""
    high, (tiles, groups) = how["BLOCK_R"], across
    wanted = -(-programs * multiprocessors() // (tiles * groups))
    part = -(-rows // (min(wanted, -(-rows // high)) * high)) * high
    parts = -(-rows // part)
    merged = max(1, min(triton.next_power_of_2(parts), _MERGED // how["BLOCK_C"]))
    return Way((parts, *across), (*cut, part), how | {"BLOCK_P": merged})


def lanes_of(C: int) -> int:
    """Lanes of a tile of C channels: as many as can be of which few are in vain."""
    blocks = [1 << n for n in range(_WIDEST.bit_length())]
    used = {block: C / (-(-C // block) * block) for block in blocks}
    enough = max(used[b] for b in blocks if b >= min(_NARROW, triton.next_power_of_2(C)))
    return max(block for block in blocks if used[block] >= min(0.9, enough))


def _side_by_side(C: int) -> tuple[int, int]:
    """How many positions make a row, and the lanes of a tile."""
    if C > _WIDEST // 2:
        return 1, lanes_of(C)
    used = {k: k * C / triton.next_power_of_2(k * C) for k in range(1, _WIDEST // C + 1)}
    wide = [k for k in used if k * C >= _NARROW] or [max(used)]
    K = next((k for k in wide if used[k] >= 0.9), max(wide, key=lambda k: used[k]))
    return K, triton.next_power_of_2(K * C)


@lru_cache(MOST_SHAPES)
def _plan(shape: torch.Size, planes: bool, dtype: torch.dtype, groups: int) -> _Plan:
    return _Plan(shape, planes, dtype, groups)


def _planned(x: Tensor, groups: int = 1) -> _Plan:
    found = layout(x)
    assert found is not None
    return _plan(x.shape, found.planes, x.dtype, groups)


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
    *,
    out: Tensor | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """act(bn(x) + residual), and the mean and biased variance it took, (C,): float64, or as given.

    As `cpu.forward`, for x with a `layout`, in float16, bfloat16, float32 or float64; `out`, which
    has one too, is written and handed back. With `groups` the samples of each are normalised
    apart, sample n in group n % groups, and the statistics are (groups, C); they divide N.
    """
    plan = _planned(x, groups)
    mean, var = statistics or _statistics(x, running, plan)
    y = out if out is not None and _alike(x, out) else _empty(x)
    residual = None if residual is None else _as(x, residual, groups)
    added = 0 if residual is None else plan.outer(residual)
    given = x, plan.outer(x), y, plan.outer(y), residual, added
    operands = *given, *_channels(mean, var, weight, bias)
    launch(gpu_passes.apply, x, plan, operands, _statics(act, slope, eps))
    if out is not None and y is not out:  # one channel alone is planes, beside others it is lanes
        y = out.copy_(y)
    return y, mean, var


def statistics(x: Tensor, running: Update | None = None) -> tuple[Tensor, Tensor]:
    """The mean and biased variance that `forward` takes of the same x: float64, (C,).

    `running` are changed in place, contiguous and float32, or float64 for such an x.
    """
    return _statistics(x, running, _planned(x))


def built() -> None:
    """Has Triton compile a kernel for this device; raises what Triton raises where it cannot."""
    number = torch.float64
    gpu_passes.merge.warmup(number, number, number, 1, 1, _MERGED_AT_ONCE, grid=(1,), **FUSED)


def merged(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and biased variance of all ranks, float64 (C,).

    A row of the (ranks, 1 + 2 C), float64 and contiguous, is a rank's count, its means and its sums
    of squares around them, zeros where it has no values.
    """
    ranks, width = rows.shape
    C = width // 2
    mean, var = moments(rows, C)
    with torch.cuda.device(rows.device) if rows.is_cuda else nullcontext():
        grid = (-(-C // _MERGED_AT_ONCE),)
        gpu_passes.merge[grid](rows, mean, var, ranks, C, _MERGED_AT_ONCE, **FUSED)
    return mean, var


def _statistics(x: Tensor, running: Update | None, plan: _Plan) -> tuple[Tensor, Tensor]:
    mean, var = moments(x, *(() if plan.groups == 1 else (plan.groups,)), plan.C)
    followed = (None, None, 0.0, 0.0) if running is None else running
    given = x, plan.outer(x), *scratch(x, plan, 4), mean, var, *followed
    launch(gpu_passes.collect, x, plan, given)
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
    *,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias, both (C,) in the type of the sums, and of the residual.

    As `cpu.backward`; with `groups` those of weight and bias are (groups, C), to be summed.
    """
    plan, grad = _planned(x, groups), _as(x, grad, groups)
    channels, statics = _channels(mean, var, weight, bias), _statics(act, slope, eps)
    of_weight, of_bias, before = _reduced(grad, x, residual, y, channels, statics, plan)
    through = grad
    if before is not None:
        through, statics = before, _statics("identity", slope, eps)
    values = plan.values if training else 0
    grad_x = _descended(through, x, channels, statics, of_weight, of_bias, values, plan)
    return grad_x, of_weight, of_bias, before


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
    given = residual, y, _channels(mean, var, weight, bias), _statics(act, slope, eps)
    return _reduced(_as(x, grad), x, *given, _planned(x))


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
    """The gradient of x, given those of weight and bias over all `count` values of a channel."""
    through, act = (grad, act) if grad_residual is None else (grad_residual, "identity")
    given = _channels(mean, var, weight, bias), _statics(act, slope, eps), grad_weight, grad_bias
    return _descended(_as(x, through), x, *given, int(count), _planned(x))


_Channels = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
_Statics = tuple[tuple[str, Any], ...]


def _channels(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> _Channels:
    """Numbers of channels, as all passes take them."""
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    return mean, var, weight, bias


def _statics(act: str, slope: float, eps: float) -> _Statics:
    """What passes are compiled for."""
    return ("ACT", act), ("SLOPE", slope), ("EPS", eps)


def _reduced(
    grad: Tensor,
    x: Tensor,
    residual: Tensor | None,
    y: Tensor | None,
    channels: _Channels,
    statics: _Statics,
    plan: _Plan,
) -> tuple[Tensor, Tensor, Tensor | None]:
    through = residual if y is None else y
    through = None if through is None else _as(x, through, plan.groups)
    before = None if through is None else _empty(x)
    added = 0 if through is None else plan.outer(through)
    kept = 0 if before is None else plan.outer(before)
    mean, *_ = channels
    of_weight, of_bias = (x.new_empty(mean.shape, dtype=plan.number) for _ in range(2))
    given = (
        *(grad, plan.outer(grad), x, plan.outer(x), through, added, before, kept),
        *(*scratch(x, plan, 2), *channels, of_weight, of_bias),
    )
    launch(gpu_passes.reduce, x, plan, given, (*statics, ("MASK", y is not None)))
    return of_weight, of_bias, before


def _descended(
    grad: Tensor,
    x: Tensor,
    channels: _Channels,
    statics: _Statics,
    of_weight: Tensor,
    of_bias: Tensor,
    values: int,
    plan: _Plan,
) -> Tensor:
    """With no values, as in eval, where the statistics are none of x's."""
    grad_x = _empty(x)
    given = (
        *(grad, plan.outer(grad), x, plan.outer(x), grad_x, plan.outer(grad_x)),
        *(*channels, of_weight, of_bias, values),
    )
    launch(gpu_passes.descend, x, plan, given, (*statics, ("TRAINING", values > 0)))
    return grad_x


def rows(x: Tensor, channels: int) -> Tensor:
    """Like x, in channels-last, with so many channels."""
    return x.new_empty((x.shape[0], *x.shape[2:], channels)).movedim(-1, 1)


def _empty(x: Tensor) -> Tensor:
    """Like x, without gaps."""
    found = layout(x)
    if found is None or found.outer == x.shape[1]:
        return torch.empty_like(x)
    if found.planes:
        return x.new_empty(x.shape)
    return rows(x, x.shape[1])


def _alike(x: Tensor, t: Tensor) -> bool:
    """Whether both are planes, or lanes."""
    there, wanted = layout(t), layout(x)
    return there is not None and wanted is not None and there.planes is wanted.planes


def _as(x: Tensor, t: Tensor, groups: int = 1) -> Tensor:
    """t, or a copy of it, in the layout and of the type of x; of groups without gaps, too."""
    same = _alike(x, t) and (groups == 1 or layout(t) == layout(x))
    return t if same and t.dtype is x.dtype else _empty(x).copy_(t)
