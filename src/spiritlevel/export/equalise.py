"""Ranges of channels made alike before quantization, by factors that cancel.

Divide an output channel of a convolution by s > 0, multiply by s the weights that read it, and the
network computes the same where the channel is free (`free_channels`; Nagel et al. 2019, section
4.1).

Factors are powers of two, so that no weight is rounded: the equalised network's numbers are those
of the given one, bit by bit, on whatever adds in the same order.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from spiritlevel.export.free_channels import Free, Layer, Reader, all_free
from spiritlevel.surgery import activations
from spiritlevel.surgery.log import Entry, note
from spiritlevel.surgery.tracer import Untraceable, layer, traced_in

__all__ = ["equalised"]

_ROUNDS = 20
"""At most, over all convolutions: the factors of one change what others' weights look like."""
_MOST = 2.0**20
"""Of a channel's factor, all rounds together, or its inverse: one that hardly ever fires is not
blown up to fill the range."""


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
) -> tuple[list[Free], dict[fx.Node, Tensor]]:
    """What is free, and the largest absolute activation of each of its channels."""
    free: list[Free] | None = None
    ranges: dict[fx.Node, Tensor] = {}
    for inputs in batches:
        run = _Run(model, graph)
        try:
            with torch.no_grad():
                run.run(*_copies(inputs))
        except Exception as error:  # whatever a graph of the user's does with other arguments
            raise Untraceable(f"its graph does not run: {error}") from error
        if free is None:
            free = list(all_free(model, graph, run.shapes))
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


def _by_channel(layer: Layer, of_weights: Tensor) -> Tensor:
    """Whatever is shaped as its weights, as (groups, outputs of one, inputs of one, the rest)."""
    groups, (outputs, inputs) = getattr(layer, "groups", 1), of_weights.shape[:2]
    return of_weights.reshape(groups, outputs // groups, inputs, -1)


def _equalise(free: Free, ranges: dict[fx.Node, Tensor], total: Tensor) -> bool:
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


def _exact(free: Free, ranges: Tensor, factor: Tensor) -> Tensor:
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


def _by_input(reader: Reader, factor: Tensor) -> Tensor:
    """As the reader's weights: (outputs, inputs of a group, 1, ...)."""
    weight, groups = reader.module.weight, getattr(reader.module, "groups", 1)
    outputs, inputs = weight.shape[:2]
    of_input = torch.ones(groups * inputs, dtype=torch.float64)
    of_input[list(reader.places)] = factor[list(reader.channels)]
    grouped = of_input.view(groups, 1, inputs).expand(groups, outputs // groups, inputs)
    return grouped.reshape(outputs, inputs, *[1] * (weight.dim() - 2)).to(weight.dtype)


def _factors(free: Free, ranges: Tensor) -> Tensor:
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
