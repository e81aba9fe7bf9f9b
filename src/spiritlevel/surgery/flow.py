"""The parts of a model whose forward pass in eval() is a graph, as torch.fx sees it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map, tree_map_only

from spiritlevel.surgery.hidden import hidden_in
from spiritlevel.surgery.reach import looked_into
from spiritlevel.surgery.tracer import (
    Leaf,
    Mode,
    Untraceable,
    closed_parts,
    hooked,
    layer,
    traced_in,
)
from spiritlevel.surgery.work import wraps

__all__ = ["Flow", "Parts", "Shape"]


class Shape(NamedTuple):
    """Stands for a tensor of the example's pass."""

    of: tuple[int, ...]


@dataclass
class Flow:
    """A part of the model whose forward is a graph."""

    root: nn.Module
    graph: fx.Graph
    opened: set[nn.Module]
    values: list[dict[fx.Node, Any]] = field(default_factory=list)
    """What the example gave its nodes, and inputs of other sizes, tensors as `Shape`. Empty where
    the example does not come by."""

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that the node calls."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


class Parts:
    """The largest parts of a model that are graphs."""

    def __init__(self, model: nn.Module, leaf: Leaf, closed: dict[nn.Module, str]) -> None:
        self.leaf, self.closed = leaf, closed
        self.found: list[Flow] = []
        self.unseen: dict[nn.Module, str] = {}
        self.hidden = {inner for module in model.modules() for inner in hidden_in(module)}
        self._look(model)

    def _look(self, root: nn.Module) -> None:
        if self._atom(root):
            return
        flow = self._flow(root)
        name = type(root).__name__
        if flow is None:
            why = f"{name}, which calls it, is no graph: {self.closed[root]}"
            self.unseen.update(dict.fromkeys(_children(root), why))
        looked = {} if flow is not None or wraps(root) else looked_into(root)
        for part in closed_parts(root, set() if flow is None else flow.opened):
            if flow is None and not wraps(root) and self.hidden.intersection(part.modules()):
                looked.setdefault(part, "another module keeps a part of it")
            if part in looked:
                self.unseen.update(dict.fromkeys(part.modules(), looked[part]))
            else:
                self._look(part)

    def _atom(self, module: nn.Module) -> bool:
        return self.leaf(module) or (layer(module) and not wraps(module))

    def _flow(self, root: nn.Module) -> Flow | None:
        try:
            if root in self.closed:
                return None
            if isinstance(root, torch.jit.ScriptModule):
                raise Untraceable("it is compiled by TorchScript")
            if wraps(root):
                raise Untraceable("it wraps another module")
            tracer = traced_in(root, self._is_node, training=False)
        except Untraceable as error:
            self.closed[root] = str(error)
            return None
        for module, why in tracer.obstacles.items():
            self.closed.setdefault(module, why)
        for node in tracer.graph.nodes:
            node.args, node.kwargs = tree_map_only(Mode, bool, (node.args, node.kwargs))
        self.found.append(Flow(root, tracer.graph, tracer.opened | {root}))
        return self.found[-1]

    def refuse_options(self, root: nn.Module, flow: Flow, given: inspect.BoundArguments) -> None:
        """Raises Untraceable where an optional argument of the call decides what is done."""
        for name, parameter in given.signature.parameters.items():
            if name not in given.arguments or parameter.default is parameter.empty:
                continue
            try:
                options = {name: parameter.default}
                other = traced_in(root, self._is_node, training=False, given=options)
            except Untraceable:
                continue  # it cannot do without
            if _deeds(other.graph, name) != _deeds(flow.graph, name):
                raise Untraceable(f"it does other things without its argument {name}")

    def _is_node(self, module: nn.Module) -> bool:
        return self._atom(module) or hooked(module) or wraps(module) or module in self.closed


def _deeds(graph: fx.Graph, option: str) -> list[Any]:
    """What is called in a graph, and with which tensors, without what torch.fx adds to hold an
    argument to its value. The option itself is as good as a constant."""

    def holds(node: fx.Node) -> bool:
        name = getattr(node.target, "__name__", "")
        return name.startswith("_assert") or (bool(node.users) and all(map(holds, node.users)))

    nodes = [node for node in graph.nodes if node.op.startswith("call_") and not holds(node)]
    names: dict[Any, Any] = {node: place for place, node in enumerate(nodes)}

    def named(leaf: Any) -> Any:
        known = isinstance(leaf, fx.Node) and leaf.target != option
        return names.get(leaf, str(leaf)) if known else None

    ends = [node for node in graph.nodes if node.op == "output"]
    return [
        (node.op, node.target if node in names else "", tree_map(named, (node.args, node.kwargs)))
        for node in (*nodes, *ends)
    ]


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from _children(child)
        else:
            yield child
