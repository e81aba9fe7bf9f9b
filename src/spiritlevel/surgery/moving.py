"""Operations that only move or average values.

Each gives of a * x + b what it gives of x, times a, plus b.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from spiritlevel.surgery.flow import Flow, Shape
from spiritlevel.surgery.tracer import touched

__all__ = ["Moving", "only_looks"]

_FUNCTIONS: frozenset[Any] = frozenset(
    (
        *(operator.getitem, torch.cat, torch.concat, torch.concatenate, torch.stack),
        *(torch.flatten, torch.unflatten, torch.reshape, torch.squeeze, torch.unsqueeze),
        *(torch.transpose, torch.swapaxes, torch.permute, torch.movedim, torch.moveaxis),
        *(torch.chunk, torch.split, torch.narrow, torch.flip, torch.roll, torch.clone),
        *(F.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle, F.pad, F.interpolate),
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout),
        *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    )
)
_AS = ("reshape_as", "view_as")
_METHODS = frozenset(
    (
        *("flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze"),
        *("transpose", "swapaxes", "permute", "movedim", "moveaxis", "t"),
        *_AS,
        *("chunk", "split", "narrow", "flip", "roll", "contiguous", "clone", "detach", "mean"),
    )
)
_MODULES = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)

_LOOKS: frozenset[Any] = frozenset(
    ("size", "dim", "ndimension", "numel", "nelement", "stride", len, torch.numel)
)


class Moving:
    """Which nodes of a flow do that.

    `values` is one of the flow's; `gone` tells which modules have been merged away: they let
    through what they are given.
    """

    def __init__(
        self, flow: Flow, values: dict[fx.Node, Any], gone: Callable[[nn.Module], bool]
    ) -> None:
        self.flow, self.values, self.gone = flow, values, gone

    def only_moves(self, node: fx.Node) -> bool:
        """Whether a node only moves or averages the values of the tensors that it is given."""
        if node.op == "call_module":
            module = self.flow.module(node)
            assert module is not None
            return self.gone(module) or (type(module) in _MODULES and _as_it_was_made(module))
        if not all(map(self._of_shapes, self._numbers(node))):
            return False
        if node.op == "call_function":
            return node.target in _FUNCTIONS and not self._trains(node)
        return node.op == "call_method" and node.target in _METHODS

    def moved(self, node: fx.Node) -> list[fx.Node]:
        """The tensors whose values an operation moves; of a `reshape_as` not what lends a shape."""
        if node.target in _AS:
            return [each for each in node.args[:1] if isinstance(each, fx.Node)]
        return [each for each in node.all_input_nodes if self._holds_tensor(each)]

    def run(self, node: fx.Node, given: Callable[[fx.Node], Any]) -> Any:
        """What the node makes of what `given` has of its inputs."""
        args = fx.node.map_arg(node.args, given)
        kwargs: Any = fx.node.map_arg(dict(node.kwargs), given)
        if node.op == "call_module":
            module = self.flow.module(node)
            assert module is not None
            return args[0] if self.gone(module) else module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _numbers(self, node: fx.Node) -> list[fx.Node]:
        """What an operation is given that is no tensor."""
        return [each for each in node.all_input_nodes if not self._holds_tensor(each)]

    def _of_shapes(self, node: fx.Node) -> bool:
        """Whether a number is one of a tensor's sizes, or is computed of such alone."""
        if only_looks(node, node):
            return True
        inputs = node.all_input_nodes
        return (
            bool(inputs)
            and not any(map(self._holds_tensor, inputs))
            and all(map(self._of_shapes, inputs))
        )

    def _trains(self, node: fx.Node) -> bool:
        """A dropout that is on in eval, too: its default."""
        name = getattr(node.target, "__name__", "")
        if "dropout" not in name:
            return False
        given = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
        return bool(given.get("training", True))

    def _holds_tensor(self, node: fx.Node) -> bool:
        value = self.values.get(node)
        return isinstance(value, Shape) or (
            isinstance(value, tuple | list) and any(isinstance(each, Shape) for each in value)
        )


def only_looks(node: fx.Node, at: fx.Node) -> bool:
    """Whether the node asks no more of the node `at` than its shape or its type."""
    if node.target in _AS:
        return node.args[0] is not at
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda")
    return node.op in ("call_method", "call_function") and node.target in _LOOKS


def _as_it_was_made(module: nn.Module) -> bool:
    """Nobody has changed what it does, nor what it divides by."""
    return touched(module) is None and getattr(module, "divisor_override", None) is None
