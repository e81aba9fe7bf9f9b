"""A norm, what is added to it and an activation in one pass each way, in training."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.kernels.activations import Activation, of_module
from spiritlevel.models.aside import by_layers, foreign, may_run
from spiritlevel.nn import BatchNorm2d, BatchNormAct2d
from spiritlevel.nn.observe import Statistics, observed, tell_of

__all__ = ["normalised", "normed"]

_NONE = Activation("identity")
_JOINED = ("relu", "relu6", "silu", "hardswish")


def normed(
    norm: nn.Module, act: nn.Module | None, x: Tensor, residual: Tensor | None = None
) -> Tensor:
    """act(norm(x) + residual), with neither where that is None.

    The layers are called where one pass would not be the same, or would spare nothing.
    """
    if (found := _in_one_pass(norm, act, x, residual)) is not None:
        return found
    y: Tensor = norm(x)
    y = y if residual is None else residual + y
    return y if act is None else act(y)


def _in_one_pass(
    norm: Any, act: nn.Module | None, x: Tensor, residual: Tensor | None
) -> Tensor | None:
    kind = _NONE if act is None or type(act) is nn.Identity else of_module(act)
    if type(norm) is not BatchNorm2d or not norm.training or kind is None:
        return None
    spares = residual is not None if kind == _NONE else kind.name in _JOINED
    if by_layers() or not spares or not may_run(x, dense=False, gpu=True):
        return None
    if foreign((norm, BatchNorm2d)) or (act is not None and foreign((act, type(act)))):
        return None
    y, statistics = norm.passed(x, residual, kind)
    if observed():
        _tell(norm, act, x, y, residual, statistics)
    return y


def _tell(
    norm: Any,
    act: nn.Module | None,
    x: Tensor,
    y: Tensor,
    residual: Tensor | None,
    statistics: Statistics | None,
) -> None:
    """Of both layers; what is between them is made where it is wanted."""

    @cache
    @torch.no_grad()
    def between() -> tuple[Tensor, Tensor]:
        assert statistics is not None
        return x, normalised(norm, x, *statistics())

    def after() -> tuple[Tensor, Tensor]:
        z = between()[1]
        return z if residual is None else residual + z, y

    tell_of(norm, x.shape, between, statistics)
    if act is not None:
        tell_of(act, x.shape, after)


def normalised(norm: Any, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """What a norm gave for x, given the batch's mean and biased variance."""
    y = F.batch_norm(x, mean.float(), var.float(), norm.weight, norm.bias, False, 0.0, norm.eps)
    return norm.act(y) if type(norm) is BatchNormAct2d else y
