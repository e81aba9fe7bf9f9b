"""Where the channels of a layer are when its output has been moved about.

Each channel is given a number of its own, the numbers go the way of the values through operations
that only move or average, and what arrives says which channel is where, whatever these operations
are called and in whatever order they come. An operation that mixes channels, or lets zeros in,
shows as a number that no channel has, or that is not the same at all positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from spiritlevel.surgery.flow import Flow, Shape
from spiritlevel.surgery.memory import bases, writes_into
from spiritlevel.surgery.moving import Moving, only_looks

__all__ = ["LAYERS", "Tracks", "residual_of"]

LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)
"""What a batch norm can be merged into."""
_SAME = 1e-7
"""How far apart the codes of one channel may be; those of two differ by more than 0.5."""


class Tracks:
    """`values` and `gone` are as `Moving` has them."""

    def __init__(
        self, flow: Flow, values: dict[fx.Node, Any], gone: Callable[[nn.Module], bool]
    ) -> None:
        self.flow, self.values = flow, values
        self.moving = Moving(flow, values, gone)

    def back(self, norm: fx.Node) -> dict[fx.Node, Tensor] | str:
        """The layers whose outputs, and nothing else, the batch norm is given; or why not.

        With each of their channels goes the batch norm's channel that it becomes, or -1.
        """
        x, layers = _input_of(norm), dict[fx.Node, Tensor]()
        if not isinstance(x, fx.Node):
            return "is given no tensor of the graph"
        if residual_of(norm) is x:
            return "is given its input as its residual, too"
        if why := self._collect(x, norm, layers):
            return why
        if x in layers and self._axis(x) == 1:  # nothing lies between
            return {x: torch.arange(len(layers[x]))}
        arrived = self._rows(self._value(x, layers), 1)
        if isinstance(arrived, str):
            return arrived
        found = {}
        for node, codes in layers.items():
            channel_of = _lookup(arrived, codes)
            layer_of_norm = [c for c in channel_of.tolist() if c >= 0]
            if len(set(layer_of_norm)) < len(layer_of_norm):
                return f"{node.target} gives one channel to several of its own"
            norm_of = torch.full((len(codes),), -1)
            norm_of[channel_of[channel_of >= 0]] = (channel_of >= 0).nonzero()[:, 0]
            found[node] = norm_of
        if sum(int((each >= 0).sum()) for each in found.values()) < len(arrived):
            return "what comes before it mixes channels"
        return found

    def ahead(self, norm: fx.Node) -> tuple[fx.Node, Tensor] | str:
        """The one layer that reads the batch norm's output; or why there is none.

        With each channel that the layer reads goes the batch norm's that it is, or -1.
        """
        node = norm
        while True:
            readers = self._readers(node)
            if len(readers) != 1:
                return "its output is read in several places" if readers else "nothing follows it"
            (reader,) = readers
            if self._is_layer(reader):
                break
            if not self.moving.only_moves(reader):
                return f"{_called(reader)} follows it"
            node = reader
        if _input_of(reader) is not node or len(reader.args) + len(reader.kwargs) != 1:
            return f"{reader.target} is called with other arguments than one input"
        if self._written_between(norm, reader):
            return "its input may be written before its output is read"
        shape = self.values.get(norm)
        if not isinstance(shape, Shape) or len(shape.of) < 2:
            return "its output is no tensor of two axes or more"
        codes = {norm: _codes(shape.of[1], 0)}
        layer = self.flow.module(reader)
        assert layer is not None
        arrived = self._value(node, codes, axis=1)
        axis = _channel_axis(layer, arrived.dim())
        rows = self._rows(arrived, axis)
        if isinstance(rows, str):
            return rows
        channel_of = _lookup(rows, codes[norm])
        if bool(((channel_of < 0) & (rows != 0)).any()):
            return "what follows it mixes channels"
        return reader, channel_of

    def _written_between(self, norm: fx.Node, reader: fx.Node) -> bool:
        """Where the norm no longer makes a tensor of its own, its output is its input."""
        held = bases(norm.all_input_nodes[0], self.flow.root)
        node = norm.next
        while node is not reader:
            if writes_into(node, held, self.flow.root):
                return True
            node = node.next
        return False

    def _collect(self, node: fx.Node, reader: fx.Node, layers: dict[fx.Node, Tensor]) -> str | None:
        """Into `layers`, the layers that make the node, by way of what moves; or why not."""
        if self._readers(node) != [reader]:
            return f"the output of {_called(node)} goes to other places, too"
        if self._is_layer(node):
            shape = self.values.get(node)
            if not isinstance(shape, Shape):
                return f"{node.target} gives no tensor"
            if node not in layers:
                layers[node] = _codes(shape.of[self._axis(node)], sum(map(len, layers.values())))
            return None
        if not self.moving.only_moves(node):
            return f"{_called(node)} comes before it, which is no convolution and no linear layer"
        whys = (self._collect(each, node, layers) for each in self.moving.moved(node))
        return next((why for why in whys if why), None)

    def _axis(self, node: fx.Node) -> int:
        """That of the channels in what a layer gives."""
        module, shape = self.flow.module(node), self.values[node]
        assert module is not None
        return _channel_axis(module, len(shape.of))

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """Without those that only ask for its shape."""
        return [user for user in node.users if not only_looks(user, node)]

    def _is_layer(self, node: fx.Node) -> bool:
        return isinstance(self.flow.module(node), LAYERS)

    def _value(
        self, node: fx.Node, codes: dict[fx.Node, Tensor], axis: int | None = None
    ) -> Tensor:
        """What arrives at a node where the coded nodes have their codes as channels.

        What does not come from them is 0.
        """
        made: dict[fx.Node, Any] = {}

        def leads(each: fx.Node) -> bool:
            return each in codes or (
                self.moving.only_moves(each) and any(map(leads, self.moving.moved(each)))
            )

        def given(each: fx.Node) -> Any:
            if each not in made:
                made[each] = compute(each)
            return made[each]

        def compute(each: fx.Node) -> Any:
            value = self.values.get(each)
            if each in codes:
                assert isinstance(value, Shape)
                place = self._axis(each) if axis is None else axis
                return _spread(codes[each], value.of, place)
            if leads(each):
                return self.moving.run(each, given)
            if isinstance(value, Shape):
                return torch.zeros(value.of, dtype=torch.float64)
            return value

        result = given(node)
        assert isinstance(result, Tensor)
        return result

    def _rows(self, arrived: Tensor, axis: int) -> Tensor | str:
        """The code of each channel along an axis, if it is the same at all positions."""
        if not -arrived.dim() <= axis < arrived.dim() or not arrived.numel():
            return "the example gives it no values"
        rows = arrived.movedim(axis, 0).flatten(1) if arrived.dim() > 1 else arrived[:, None]
        if bool((rows - rows[:, :1]).abs().max() > _SAME):
            return "its channels are not those of the layer beside it"
        return rows[:, 0].contiguous()


def _codes(channels: int, start: int) -> Tensor:
    """Increasing numbers, no mean of which is another one but by chance; never 0."""
    generator = torch.Generator().manual_seed(start)
    jitter = torch.rand(channels, generator=generator, dtype=torch.float64)
    return torch.arange(1, channels + 1, dtype=torch.float64) + start + jitter / 2


def _spread(codes: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    view = [1] * len(shape)
    view[axis] = len(codes)
    return codes.view(view).expand(shape).contiguous()


def _lookup(found: Tensor, codes: Tensor) -> Tensor:
    """The place of each number among the codes, or -1."""
    nearest = torch.searchsorted(codes, found).clamp(max=len(codes) - 1)
    before = (nearest - 1).clamp(min=0)
    place = torch.where((codes[before] - found).abs() < _SAME, before, nearest)
    return torch.where((codes[place] - found).abs() < _SAME, place, -1)


def _channel_axis(layer: nn.Module, rank: int) -> int:
    """Of a layer's input and output alike; a convolution takes a sample without a batch axis."""
    if isinstance(layer, _ConvNd):
        return 1 if rank == len(layer.kernel_size) + 2 else 0
    return rank - 1


def _input_of(node: fx.Node) -> Any:
    """What a call of a layer is given first."""
    return node.args[0] if node.args else node.kwargs.get("input")


def residual_of(node: fx.Node) -> Any:
    """What a call of a fused batch norm adds; None without one."""
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("residual")


def _called(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{node.target}"
    if node.op in ("placeholder", "get_attr"):
        return f"{node.target} (an input)" if node.op == "placeholder" else str(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return f"{name}()"
