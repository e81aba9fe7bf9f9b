"""Ranges of channels made alike before quantization, by factors that cancel.

Divide an output channel of a convolution by s > 0, multiply by s the weights that read it, and the
network computes the same wherever what lies between is positively homogeneous, f(x / s) = f(x) / s
(Nagel et al. 2019, section 4.1): the identity, ReLU and leaky ReLU, pooling, concatenation. Zeros
of a padding stay zero, and every other padding repeats values of the same channel. So a channel is
free if all that reads it, by whatever way, is a convolution or a linear layer, dense, grouped or
depthwise: in a Ghost module the primary convolution's channels are read by the cheap one and, past
the concatenation, by the next layer, and both take the factor. A product with a gate passes the
factor on, if what the gate is computed from takes it as well. A sum has one scale for all that it
adds, and ReLU6, hard swish and sigmoids are not homogeneous: what they read is not free.

Factors are powers of two, so that no weight is rounded: the equalised network's numbers are those
of the given one, bit by bit, on whatever adds in the same order.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from spiritlevel.surgery import activations
from spiritlevel.surgery.log import Entry, note
from spiritlevel.surgery.tracer import Untraceable, layer, touched, traced_in

__all__ = ["equalised"]

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
_ROUNDS = 20
"""At most, over all convolutions: the factors of one change what others' weights look like."""
_MOST = 2.0**20
"""Of a channel's factor, all rounds together, or its inverse: one that hardly ever fires is not
blown up to fill the range."""

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Channels = list[int | None]
"""Of each channel of a tensor, which one of the source it is; None for others'."""


@dataclass(frozen=True)
class _Reader:
    """A layer whose input channel `place` is the source's channel `channel`, for each pair."""

    module: Layer
    places: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class _Free:
    """A convolution all of whose channels are free, and all that reads them."""

    path: str
    node: fx.Node
    source: Layer
    readers: tuple[_Reader, ...]


def equalised(model: nn.Module, batches: Iterable[Sequence[Tensor]]) -> nn.Module:
    """A copy that computes the same, with the channels of each free convolution alike in range.

    `model` is folded and in eval; each of `batches` is its inputs by position, whose activations
    tell the ranges. Which convolutions were equalised is in the copy's `spiritlevel_log`; a model
    that is no graph, or has none that is free, is copied as it is.
    """
    given, model = model, copy.deepcopy(model)
    batches = iter(batches)
    first = list(itertools.islice(batches, 1))
    try:
        graph = traced_in(model, layer, training=False).graph
        free, ranges = _measured(model, graph, itertools.chain(first, batches))
        spread = {each.path: _spread(ranges[each.node]) for each in free}
        with torch.no_grad():
            totals = {each.path: torch.ones_like(ranges[each.node]) for each in free}
            for _ in range(_ROUNDS):
                changed = [_equalise(each, ranges, totals[each.path]) for each in free]
                if not any(changed):
                    break
            if free and not _same(given, model, first[0]):
                raise Untraceable("its outputs became others")
    except Untraceable as error:
        model = copy.deepcopy(given)
        note(model, [Entry("left", (), f"no ranges are equalised: {error}")])
        return model
    entries = [
        Entry("equalised", (path,), f"its channels' ranges spread {before:.0f} to 1")
        for path, before in spread.items()
    ]
    note(model, entries)
    return model


def _same(one: nn.Module, other: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether they give the same, but for rounding: a guard against a way nobody thought of."""
    expected, found = (tree_leaves(each(*_copies(inputs))) for each in (one, other))
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if isinstance(a, Tensor)]
    for a, b in pairs:
        allowed = 0.0
        if a.is_floating_point() and a.numel():
            largest = float(a.abs().nan_to_num(0.0, 0.0).max())
            allowed = 16 * torch.finfo(a.dtype).eps * largest
        if not torch.allclose(a, b, rtol=0, atol=allowed, equal_nan=True):
            return False
    return True


def _copies(inputs: Sequence[Tensor]) -> list[Tensor]:
    """For a model may write to them."""
    return [each.clone() for each in inputs]


def _measured(
    model: nn.Module, graph: fx.Graph, batches: Iterable[Sequence[Tensor]]
) -> tuple[list[_Free], dict[fx.Node, Tensor]]:
    """What is free, and the largest absolute activation of each of its channels."""
    free: list[_Free] | None = None
    ranges: dict[fx.Node, Tensor] = {}
    for inputs in batches:
        run = _Run(model, graph)
        try:
            with torch.no_grad():
                run.run(*_copies(inputs))
        except Exception as error:  # whatever a graph of the user's does with other arguments
            raise Untraceable(f"its graph does not run: {error}") from error
        if free is None:
            free = list(_all_free(model, graph, run.shapes))
        for each in free:
            found = run.ranges[each.node]
            known = ranges.get(each.node)
            ranges[each.node] = found if known is None else torch.maximum(known, found)
    return free or [], ranges


class _Run(fx.Interpreter):
    """One pass; `shapes` of all tensors, `ranges` of what convolutions give after their ReLU."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.ranges: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
            if value.dim() > 1 and value.is_floating_point():
                rest = [axis for axis in range(value.dim()) if axis != 1]
                source = _source(n, self.module)
                self.ranges[source] = value.abs().amax(rest).double()
        return value


def _source(node: fx.Node, root: nn.Module) -> fx.Node:
    """Its convolution, if it is the only reader of one and an activation; else the node itself."""
    found = activations.of_node(node, root)
    if found is None or len(found[0].users) > 1:
        return node
    return found[0]


def _all_free(
    root: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size]
) -> Iterator[_Free]:
    flow = _Flow(root, graph, shapes)
    for node in graph.nodes:
        if node.op == "call_module" and flow.ours(node):
            module = root.get_submodule(node.target)
            if isinstance(module, _CONVOLUTIONS) and flow.batched(node, module):
                readers = flow.readers(node, list(range(module.out_channels)))
                if readers:
                    yield _Free(node.target, node, module, tuple(readers))


class _Flow:
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

    def readers(self, node: fx.Node, channels: Channels) -> list[_Reader] | None:
        """All layers that the channels of a tensor end in; None where some end elsewhere."""
        found: list[_Reader] = []
        for user in node.users:
            for passed in self._passed(user, node, channels):
                if passed is None:
                    return None
                if isinstance(passed, _Reader):
                    found.append(passed)
                    continue
                beyond = self.readers(user, passed)
                if beyond is None:
                    return None
                found += beyond
        return found

    def _passed(
        self, user: fx.Node, node: fx.Node, channels: Channels
    ) -> list[Channels | _Reader | None]:
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
    ) -> Channels | _Reader | None:
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
    ) -> list[Channels | _Reader | None]:
        given = user.args[0] if user.args else user.kwargs.get("tensors")
        axis = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
        if not isinstance(given, list | tuple) or axis not in (1, 1 - len(self.shapes[node])):
            return [None]
        before = 0
        found: list[Channels | _Reader | None] = []
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


def _reader(module: Layer, channels: Channels) -> _Reader:
    pairs = [(place, channel) for place, channel in enumerate(channels) if channel is not None]
    return _Reader(module, tuple(p for p, _ in pairs), tuple(c for _, c in pairs))


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


def _by_channel(layer: Layer, of_weights: Tensor) -> Tensor:
    """Whatever is shaped as its weights, as (groups, outputs of one, inputs of one, the rest)."""
    groups, (outputs, inputs) = getattr(layer, "groups", 1), of_weights.shape[:2]
    return of_weights.reshape(groups, outputs // groups, inputs, -1)


def _equalise(free: _Free, ranges: dict[fx.Node, Tensor], total: Tensor) -> bool:
    """In the weights, the ranges and the factors so far; whether anything changes."""
    wanted = total * _factors(free, ranges[free.node])
    factor = wanted.clamp(1 / _MOST, _MOST) / total
    factor = torch.where(_exact(free, ranges[free.node], factor), factor, 1.0)
    ranges[free.node] = ranges[free.node] / factor
    total *= factor
    for parameter in free.source.parameters(recurse=False):
        parameter.div_(_by_output(parameter, factor))
    for reader in free.readers:
        reader.module.weight.mul_(_by_input(reader, factor))
    return bool((factor != 1).any())


def _exact(free: _Free, ranges: Tensor, factor: Tensor) -> Tensor:
    """Of each channel, whether its numbers stay within their type's range: bool (out_channels,)."""
    info = torch.finfo(free.source.weight.dtype)
    made = ranges / factor
    exact = (made <= info.max) & ((made >= info.tiny / info.eps) | (factor <= 1))
    for parameter in free.source.parameters(recurse=False):
        by = _by_output(parameter, factor)
        exact &= (parameter / by * by == parameter).reshape(len(factor), -1).all(1)
    for reader in free.readers:
        weight, by = reader.module.weight, _by_input(reader, factor)
        kept = _by_channel(reader.module, weight * by / by == weight).all(3).all(1).flatten()
        channels = torch.tensor(reader.channels, dtype=torch.int64)
        exact[channels[~kept[list(reader.places)]]] = False
    return exact


def _by_output(parameter: Tensor, factor: Tensor) -> Tensor:
    return factor.to(parameter.dtype).view(-1, *[1] * (parameter.dim() - 1))


def _by_input(reader: _Reader, factor: Tensor) -> Tensor:
    """As the reader's weights: (outputs, inputs of a group, 1, ...)."""
    weight, groups = reader.module.weight, getattr(reader.module, "groups", 1)
    outputs, inputs = weight.shape[:2]
    of_input = torch.ones(groups * inputs, dtype=torch.float64)
    of_input[list(reader.places)] = factor[list(reader.channels)]
    grouped = of_input.view(groups, 1, inputs).expand(groups, outputs // groups, inputs)
    return grouped.reshape(outputs, inputs, *[1] * (weight.dim() - 2)).to(weight.dtype)


def _factors(free: _Free, ranges: Tensor) -> Tensor:
    """float64 (out_channels,), powers of two; 1 for a channel that is dead or read by no weight.

    Nagel et al.'s sqrt(r1 r2) / r2 with the range r1 of the activation and r2 of the weights that
    read it, as a share of the largest of their output's, since each output has a scale. Nothing is
    normalised beyond, so that sources which share a reader come to one scale. Depthwise weights are
    quantized channel by channel and their range costs nothing: read by them alone, a channel is
    given the range of the largest.
    """
    read = torch.zeros_like(ranges)
    for reader in free.readers:
        weight = _by_channel(reader.module, reader.module.weight)
        if weight.shape[2] == 1 and weight.shape[0] > 1:
            continue
        size = weight.abs().double()
        size /= size.amax((2, 3), keepdim=True).clamp_min(1e-300)  # each output has its own scale
        of_input = size.amax((1, 3)).flatten()
        places, channels = list(reader.places), list(reader.channels)
        read[channels] = torch.maximum(read[channels], of_input[places])
    if not bool(read.any()):
        read = torch.ones_like(read)
        wanted = ranges / ranges.max()
    else:
        wanted = (ranges / read).sqrt()
    good = (ranges > 0) & (read > 0) & wanted.isfinite() & (wanted > 0)
    if not bool(good.any()):
        return torch.ones_like(ranges)
    return torch.exp2(torch.where(good, wanted, 1.0).log2().round())


def _spread(ranges: Tensor) -> float:
    alive = ranges[ranges > 0]
    return float(alive.max() / alive.min()) if len(alive) else 1.0
