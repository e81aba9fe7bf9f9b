"""Which convolutions are free: their channels may be scaled, if what reads them undoes it.

A factor passes whatever is positively homogeneous, f(x / s) = f(x) / s (Nagel et al. 2019, section
4.1): the identity, ReLU and leaky ReLU, pooling, concatenation. Zeros of a padding stay zero, and
every other padding repeats values of the same channel. So a channel is free if all that reads it,
by whatever way, is a convolution or a linear layer, dense, grouped or depthwise: in a Ghost module
the primary convolution's channels are read by the cheap one and, past the concatenation, by the
next layer, and both take the factor. A product with a gate passes the factor on, if what the gate
is computed from takes it as well. A sum has one scale for all that it adds, and ReLU6, hard swish
and sigmoids are not homogeneous: what they read is not free.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from spiritlevel.surgery import activations
from spiritlevel.surgery.tracer import touched

__all__ = ["Free", "Layer", "Reader", "all_free"]

_HOMOGENEOUS = ("relu", "leaky_relu")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_AXES: dict[Any, int] = {
    **dict.fromkeys((nn.Dropout1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d), 1),
    **dict.fromkeys((nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), 2),
    **dict.fromkeys((nn.Dropout3d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d), 3),
    **dict.fromkeys((torch.max_pool1d, torch.avg_pool1d, torch.adaptive_avg_pool1d), 1),
    **dict.fromkeys((torch.max_pool2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d), 2),
    **dict.fromkeys((torch.max_pool3d, F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d), 3),
    **dict.fromkeys((F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d), 1),
}
"""Modules and functions that are homogeneous and keep each channel to itself, in eval, by the axes
past batch and channels: torch takes a tensor of one less as one sample, and its batch as channels.
"""

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Channels = list[int | None]
"""Of each channel of a tensor, which one of the source it is; None for others'."""


@dataclass(frozen=True)
class Reader:
    """A layer whose input channel `place` is the source's channel `channel`, for each pair."""

    module: Layer
    places: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Free:
    """A convolution all of whose channels are free, and all that reads them."""

    path: str
    node: fx.Node
    source: Layer
    readers: tuple[Reader, ...]


def all_free(root: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size]) -> Iterator[Free]:
    """The convolutions of a graph of `root` that are free; `shapes` are those of its tensors."""
    ways = _Ways(root, graph, shapes)
    for node in graph.nodes:
        if node.op == "call_module" and ways.ours(node):
            module = root.get_submodule(node.target)
            if isinstance(module, _CONVOLUTIONS) and ways.batched(node, module):
                readers = ways.readers(node, list(range(module.out_channels)))
                if readers:
                    yield Free(node.target, node, module, tuple(readers))


class _Ways:
    """Where the channels of a convolution go."""

    def __init__(self, root: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size]) -> None:
        self.root, self.shapes = root, shapes
        self.calls: dict[nn.Module, int] = {}
        self.apart: set[int] = set()
        """Parameters that the graph reads by themselves."""
        for node in graph.nodes:
            if node.op == "call_module":
                module = root.get_submodule(node.target)
                self.calls[module] = self.calls.get(module, 0) + 1
            elif node.op == "get_attr":
                self.apart.add(id(operator.attrgetter(node.target)(root)))
        holders: dict[int, int] = {}
        for module in root.modules():
            for parameter in module.parameters(recurse=False):
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1
        self.apart |= {key for key, count in holders.items() if count > 1}

    def ours(self, node: fx.Node) -> bool:
        """A layer that is called once, heard by none, and owns its weights."""
        module = self.root.get_submodule(str(node.target))
        return (
            type(module) in (*_CONVOLUTIONS, nn.Linear)
            and self.calls[module] == 1
            and touched(module) is None
            and len(node.args) == 1
            and not node.kwargs
            and not any(id(each) in self.apart for each in module.parameters())
        )

    def batched(self, node: fx.Node, layer: Layer) -> bool:
        """Whether it is given samples, whose channels are axis 1, not one of them."""
        return len(self.shapes[node]) == layer.weight.dim()

    def readers(self, node: fx.Node, channels: Channels) -> list[Reader] | None:
        """All layers that the channels of a tensor end in; None where some end elsewhere."""
        found: list[Reader] = []
        for user in node.users:
            for passed in self._passed(user, node, channels):
                if passed is None:
                    return None
                if isinstance(passed, Reader):
                    found.append(passed)
                    continue
                beyond = self.readers(user, passed)
                if beyond is None:
                    return None
                found += beyond
        return found

    def _passed(
        self, user: fx.Node, node: fx.Node, channels: Channels
    ) -> list[Channels | Reader | None]:
        """What the user makes of them: a tensor of its own, an end, or something else (None)."""
        if user not in self.shapes:  # no tensor, such as a pool's with its indices
            return [None]
        act = activations.of_node(user, self.root)
        if act is not None:
            return [channels if act[1].name in _HOMOGENEOUS else None]
        if user.op == "call_module":
            return [self._of_module(user, node, channels)]
        if user.target is torch.cat:
            return self._of_cat(user, node, channels)
        if user.target in (operator.mul, torch.mul, "mul"):
            return [channels if self._is_scaled(user, node) else None]
        if user.args[:1] != (node,) or node in user.all_input_nodes[1:]:
            return [None]
        if user.target in ("contiguous", "clone", "detach"):
            return [channels]
        if user.op == "call_function" and user.target in _AXES:
            return [channels if self._has_axes(node, _AXES[user.target]) else None]
        if user.target in ("mean", torch.mean):
            return [channels if self._keeps_channels(user, node) else None]
        if user.target in ("flatten", torch.flatten):
            flat = user.args[1:] == (1,) and not user.kwargs
            return [channels if flat and self._is_point(node) else None]
        if user.target is operator.getitem:
            return [_sliced(user.args[1], channels)]
        return [None]

    def _of_module(
        self, user: fx.Node, node: fx.Node, channels: Channels
    ) -> Channels | Reader | None:
        module = self.root.get_submodule(str(user.target))
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            ours = self.batched(user, module) and self.ours(user)
            return _reader(module, channels) if ours else None
        if user.args != (node,) or user.kwargs or touched(module):
            return None
        if type(module) is nn.Flatten:
            flat = (module.start_dim, module.end_dim) == (1, -1)
            return channels if flat and self._is_point(node) else None
        if module.training:
            return None
        if type(module) in (nn.Identity, nn.Dropout):
            return channels
        axes = _AXES.get(type(module))
        return channels if axes is not None and self._has_axes(node, axes) else None

    def _of_cat(
        self, user: fx.Node, node: fx.Node, channels: Channels
    ) -> list[Channels | Reader | None]:
        given = user.args[0] if user.args else user.kwargs.get("tensors")
        axis = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
        if not isinstance(given, list | tuple) or axis not in (1, 1 - len(self.shapes[node])):
            return [None]
        before = 0
        found: list[Channels | Reader | None] = []
        total = self.shapes[user][1]
        for each in given:
            width = self.shapes[each][1]
            if each is node:
                found.append([None] * before + channels + [None] * (total - before - width))
            before += width
        return found

    def _is_scaled(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether the product is of this tensor, once, with a number or with a gate."""
        shape, made = self.shapes[node], self.shapes[user]
        alike = len(made) == len(shape) and made[1] == shape[1]
        return alike and not user.kwargs and list(user.args).count(node) == 1

    def _has_axes(self, node: fx.Node, axes: int) -> bool:
        """Past batch and channels."""
        return len(self.shapes[node]) == axes + 2

    def _is_point(self, node: fx.Node) -> bool:
        """Whether each channel is one value."""
        return math.prod(self.shapes[node][2:]) == 1

    def _keeps_channels(self, user: fx.Node, node: fx.Node) -> bool:
        axes = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim")
        axes = [axes] if isinstance(axes, int) else axes
        rank = len(self.shapes[node])
        return isinstance(axes, list | tuple) and all(axis % rank > 1 for axis in axes)


def _reader(module: Layer, channels: Channels) -> Reader:
    pairs = [(place, channel) for place, channel in enumerate(channels) if channel is not None]
    return Reader(module, tuple(p for p, _ in pairs), tuple(c for _, c in pairs))


def _sliced(index: Any, channels: Channels) -> Channels | None:
    """y[:, :k]: the first channels of all samples."""
    if not isinstance(index, tuple) or len(index) < 2 or index[0] != slice(None):
        return None
    whole = all(each == slice(None) for each in index[2:])
    ends = index[1]
    known = isinstance(ends, slice) and all(
        end is None or isinstance(end, int) for end in (ends.start, ends.stop, ends.step)
    )
    return channels[ends] if whole and known and isinstance(ends, slice) else None
