"""Sums of branches, and the Ghost modules that are made of them, as one operation: see `fused`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spiritlevel.kernels import backend
from spiritlevel.kernels.remade import spared
from spiritlevel.models.aside import (
    ACTS,
    TYPES,
    by_layers,
    cast,
    channels_last,
    foreign,
    is_cheap,
    is_float,
    is_product,
    may_run,
    trains,
)
from spiritlevel.models.layers import ConvNormAct
from spiritlevel.models.normed import normalised
from spiritlevel.nn import BatchNorm2d
from spiritlevel.nn.observe import Values, observed, tell_of

__all__ = ["branched_module", "halved_sum"]


class _Sum(NamedTuple):
    """The convolutions of its branches, or none, their norms, and the activation of the sum."""

    convs: list[Any]
    norms: list[Any]
    act: nn.Module


def branched_module(
    module: Any, x: Tensor, residual: Callable[[], Any] | None = None, *, alone: bool = False
) -> Tensor | None:
    """As `fused.ghost_module` has it, of a module that `branched` says is one of sums."""
    if by_layers() or not (module.training and may_run(x)) or x.shape[0] * x.shape[2:].numel() == 1:
        return None
    first = _summed(module.branches("primary"), module.primary_activation)
    second = _summed(module.branches("cheap"), module.cheap_activation)
    if foreign((module.bn, nn.Identity), (module.act, nn.Identity)):
        return None
    if first is None or second is None or not _fit(first, second, module.out_chs, x):
        return None
    if {*first.norms} & {*second.norms}:  # it would follow one batch, and then another
        return None
    x = cast(x)
    if x.dtype not in TYPES or not channels_last(x):
        return None
    return _joined(x, first, second, None if residual is None else residual(), alone)


def _fit(first: _Sum, second: _Sum, out_chs: int, x: Tensor) -> bool:
    """Whether they are what our kernels have: 1x1 branches, then depthwise ones, 3x3 last."""
    if None in first.convs or type(first.act) is not type(second.act):
        return False
    channels = first.convs[0].out_channels
    sides = [1 if conv is None else conv.kernel_size[0] for conv in second.convs]
    return (
        out_chs == 2 * channels
        and all(is_product(conv, x) and conv.out_channels == channels for conv in first.convs)
        and all(conv is None or _is_branch(conv, channels) for conv in second.convs)
        and all(trains(norm, channels) for norm in (*first.norms, *second.norms))
        and sides == sorted(sides)
    )


def halved_sum(branches: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """The sum of depthwise branches that halve x; None where their layers must be called."""
    if by_layers() or not may_run(x):
        return None
    found = _summed(branches, nn.Identity())
    if found is None or None in found.convs:
        return None
    channels, side = x.shape[1], max(conv.kernel_size[0] for conv in found.convs)
    if side not in (3, 5) or not all(_halves(conv, channels, side) for conv in found.convs):
        return None
    positions = x.shape[0] * (-(-x.shape[2] // 2)) * (-(-x.shape[3] // 2))
    if positions == 1 or not all(trains(norm, channels) for norm in found.norms):
        return None
    x = cast(x)
    if x.dtype not in TYPES or not channels_last(x):
        return None
    from spiritlevel.kernels.branched_depthwise import branched_depthwise

    backend.ran["cpu"] += len(found.norms)
    y, statistics = branched_depthwise(x, _branches(found), side)
    _follow(found.norms, statistics, positions)
    if observed():
        _told_of_each(found, lambda: x, y.shape, zip(*statistics, strict=True), 2)
    return y


def _halves(conv: nn.Conv2d, chs: int, side: int) -> bool:
    """Whether it is a depthwise convolution of that side, or of one position, and halves a map."""
    own = conv.kernel_size[0]
    options = (conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.groups)
    return (
        options == ((2, 2), (own // 2, own // 2), (1, 1), "zeros", chs)
        and conv.bias is None
        and own in (1, side)
        and is_float(conv.weight, chs, 1, own, own)
    )


def _summed(branches: Sequence[nn.Module], act: nn.Module) -> _Sum | None:
    """None where somebody looks at a part of it, or it is none that we know."""
    convs: list[Any] = []
    norms: list[Any] = []
    places: list[Any] = [(act, *ACTS)]
    for branch in branches:
        if isinstance(branch, ConvNormAct):
            conv, norm = branch.conv, branch.bn1
            if type(norm) is not BatchNorm2d:
                return None
            places += [(branch, ConvNormAct), (conv, nn.Conv2d), (branch.act1, nn.Identity)]
        else:
            conv, norm = None, branch
        convs.append(conv)
        norms.append(norm)
        places.append((norm, BatchNorm2d))
    if foreign(*places) or not convs or len({*norms}) < len(norms):
        return None
    return _Sum(convs, norms, act)


def _is_branch(conv: nn.Conv2d, chs: int) -> bool:
    """Whether it is a depthwise 3x3 convolution, or a 1x1 one, that our kernels have."""
    options = (conv.stride, conv.padding, conv.groups)
    alone = options == ((1, 1), (0, 0), chs) and conv.bias is None
    return is_cheap(conv, chs) or (alone and is_float(conv.weight, chs, 1, 1, 1))


def _joined(x: Tensor, first: _Sum, second: _Sum, residual: Any, alone: bool) -> Tensor:
    from spiritlevel.kernels.branched_module import branched_halves

    norms = [*first.norms, *second.norms]
    backend.ran["cpu"] += len(norms)
    whole = (x.shape[0], 2 * first.convs[0].out_channels, *x.shape[2:])
    fits = isinstance(residual, Tensor) and residual.shape == whole and residual.dtype is x.dtype
    given = x, _branches(first), _branches(second), ACTS[type(first.act)]
    with spared(x) if alone else nullcontext():
        out, call = branched_halves(*given, residual if fits else None, again=residual is None)
    _follow(norms, call.statistics, x.numel() // x.shape[1])
    if observed():
        _told(x, first, second, call)
    return out if residual is None or fits else out + residual


def _branches(of: _Sum) -> list[Any]:
    from spiritlevel.kernels.branched_module import Branch

    kernels = [None if conv is None else conv.weight for conv in of.convs]
    each = zip(kernels, of.norms, strict=True)
    return [Branch(kernel, norm.weight, norm.bias, norm.eps) for kernel, norm in each]


@torch.no_grad()
def _follow(norms: Sequence[Any], statistics: tuple[Tensor, Tensor], count: int) -> None:
    """The running statistics of all norms go towards the batch's, whose variance is unbiased."""
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    share: Any = {norm.momentum for norm in norms}
    share = share.pop() if len(share) == 1 else [[norm.momentum] for norm in norms]
    share = torch.tensor(share, dtype=torch.float64)
    for at, name, factor in ((0, "running_mean", 1.0), (1, "running_var", count / (count - 1))):
        # Autograd is not told, as torch's layers do not.
        running = [getattr(norm, name).data for norm in norms]
        found = torch.stack(running) * (1 - share) + statistics[at] * (share * factor)
        torch._foreach_copy_(running, [*found.float()])


def _told(x: Tensor, first: _Sum, second: _Sum, call: Any) -> None:
    """Of each norm, and of the activations; what they read is made again where it is wanted."""
    y, each, kind = call.y, zip(*call.statistics, strict=True), ACTS[type(first.act)]

    @cache
    @torch.no_grad()
    def p() -> Tensor:
        return kind(y)

    @torch.no_grad()
    def after() -> tuple[Tensor, Tensor]:
        z = torch.stack([values()[1] for values in others]).sum(0)
        return z, kind(z)

    _told_of_each(first, lambda: x, y.shape, each)
    tell_of(first.act, y.shape, lambda: (y, p()))
    others = _told_of_each(second, p, y.shape, each)
    tell_of(second.act, y.shape, after)


def _told_of_each(
    of: _Sum, source: Callable[[], Tensor], shape: torch.Size, statistics: Any, stride: int = 1
) -> list[Values]:
    """Of the norms of a sum, with as many of the statistics; what passes through each of them."""
    from spiritlevel.kernels.branched_module import branch_of

    def values_of(conv: Any, norm: Any, found: tuple[Tensor, Tensor]) -> Values:
        @cache
        @torch.no_grad()
        def values() -> tuple[Tensor, Tensor]:
            given = branch_of(source(), None if conv is None else conv.weight, stride)
            return given, normalised(norm, given, *found)

        tell_of(norm, shape, values, lambda: found)
        return values

    each = zip(of.convs, of.norms, strict=True)
    return [values_of(conv, norm, next(statistics)) for conv, norm in each]
