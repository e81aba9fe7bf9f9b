"""A model's forward pass as a graph that holds in `train()` as in `eval()`.

The graphs of training and eval are the same but for `self.training` handed to a function. Where
they differ by more, the module that differs stays closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from spiritlevel.surgery.tracer import Leaf, Mode, Stack, Untraceable, traced_in

__all__ = ["Difference", "Trace", "compare", "read_modes_when_run", "trace"]


class Difference(Exception):
    """Two graphs are not the same from this node on."""

    def __init__(self, *nodes: fx.Node) -> None:
        super().__init__()
        self.stack = _culprit(*(node.meta["stack"] for node in nodes))


def _culprit(one: Stack, other: Stack) -> Stack:
    """The calls around what differs, where the two graphs were there when they first did."""
    common = 0
    while one[: common + 1] == other[: common + 1] and common < min(len(one), len(other)):
        common += 1
    if min(len(one), len(other)) == common:
        return max(one, other, key=len)
    (_, first), (_, second) = one[common], other[common]
    if first == second:  # they go on with different modules
        return one[:common]
    return one if first < second else other  # what one graph still does in an earlier call


@dataclass
class Trace:
    """`graph` is that of training; `modes` are its constants that are some module's `training`."""

    root: nn.Module
    graph: fx.Graph
    closed: dict[nn.Module, str]
    """Modules that are one node, and why; without those that `leaf` named."""
    opened: set[nn.Module]
    modes: list[tuple[fx.Node, int]] = field(default_factory=list)
    """A node, and the place among its flat arguments."""


def trace(root: nn.Module, leaf: Leaf) -> Trace:
    """The graph of `root` in both modes; modules for which `leaf` holds are nodes.

    Raises Untraceable.
    """
    closed: dict[nn.Module, str] = {}

    def is_leaf(module: nn.Module) -> bool:
        return module in closed or leaf(module)

    while True:
        known = len(closed)
        training = traced_in(root, is_leaf, training=True)
        closed.update(training.obstacles)
        evaluating = traced_in(root, is_leaf, training=False)
        closed.update(evaluating.obstacles)
        if known + len(training.obstacles) < len(closed):
            continue  # one mode opened what the other could not
        try:
            modes = compare(training.graph, evaluating.graph)
        except Difference as difference:
            why = "it does other things in train() than in eval()"
            if not difference.stack:
                raise Untraceable(why) from None
            closed[root.get_submodule(difference.stack[-1][0])] = why
            continue
        return Trace(root, training.graph, closed, training.opened, modes)


def compare(training: fx.Graph, evaluating: fx.Graph) -> list[tuple[fx.Node, int]]:
    """Where the one has `training` of a module and the other its opposite. Raises Difference."""
    index = {node: i for graph in (training, evaluating) for i, node in enumerate(graph.nodes)}
    found = []
    for one, other in zip(training.nodes, evaluating.nodes, strict=False):
        if one.op != other.op or _target(one) != _target(other):
            raise Difference(one, other)
        (left, left_spec), (right, right_spec) = (_flat(node, index) for node in (one, other))
        if left_spec != right_spec:
            raise Difference(one, other)
        for place, (a, b) in enumerate(zip(left, right, strict=True)):
            if isinstance(a, Mode) and isinstance(b, Mode) and a.owner is b.owner:
                if a != b:
                    found.append((one, place))
            elif type(a) is not type(b) or a != b:
                raise Difference(one, other)
    if len(training.nodes) != len(evaluating.nodes):
        raise Difference(next(reversed(training.nodes)), next(reversed(evaluating.nodes)))
    return found


def read_modes_when_run(traced: Trace) -> None:
    """Its constants that are `self.training` of a module are read from it from now on."""
    graph = traced.graph
    paths = {module: path for path, module in traced.root.named_modules()}
    for node, place in traced.modes:
        leaves, spec = tree_flatten((node.args, node.kwargs))
        path = paths[leaves[place].owner]
        with graph.inserting_before(node):
            mode = graph.create_node("get_attr", f"{path}.training" if path else "training")
        leaves[place] = mode
        node.args, node.kwargs = tree_unflatten(leaves, spec)


@dataclass(frozen=True)
class _Number:
    """Of a node in its graph."""

    of: int


def _target(node: fx.Node) -> Any:
    """A module itself, since it may have several names."""
    return node.meta.get("module", node.target)


def _flat(node: fx.Node, index: dict[fx.Node, int]) -> tuple[list[Any], Any]:
    number: Any = lambda other: _Number(index[other])  # noqa: E731
    arguments = fx.node.map_arg((node.args, dict(node.kwargs)), number)
    return tree_flatten(arguments)
