"""What goes where in an eval() forward pass: graphs of a model's parts, and an example's shapes.

A graph is taken only where the example runs just what it shows: the same layers in the same order.
So an optional argument that a symbol takes for given, or a branch that this torch.fx cannot see,
closes the module that has it, and its children are looked at one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from spiritlevel.kernels import backend
from spiritlevel.lent.kept import kept
from spiritlevel.surgery.kept import kept_by
from spiritlevel.surgery.reach import looked_into
from spiritlevel.surgery.tracer import Leaf, Mode, Untraceable, hooked, layer, traced_in
from spiritlevel.surgery.verify import run
from spiritlevel.surgery.work import wraps

__all__ = ["Flow", "Flows", "Shape", "flows"]


class Shape(NamedTuple):
    """Stands for a tensor of the example's pass."""

    of: tuple[int, ...]


@dataclass
class Flow:
    """A part of the model whose forward is a graph, and what the example gave its nodes."""

    root: nn.Module
    graph: fx.Graph
    opened: set[nn.Module]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """Tensors as `Shape`; empty where the example does not come by."""

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that the node calls."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


@dataclass
class Flows:
    found: list[Flow]
    unseen: dict[nn.Module, str]
    """Modules of which no graph shows how they are used, and why."""


def flows(model: nn.Module, example: Any, leaf: Leaf) -> Flows:
    """Of a model in eval(); modules for which `leaf` holds are nodes."""
    closed: dict[nn.Module, str] = {}
    while True:
        parts = _Parts(model, leaf, closed)
        known = len(closed)
        with _watched(parts.found, closed), kept(model), backend.use("aten"):
            run(model, example)
        if len(closed) == known:
            break
    for flow in parts.found:
        if not flow.values:
            why = "the example does not come by"
            parts.unseen.update(dict.fromkeys(flow.root.modules(), why))
    return Flows([flow for flow in parts.found if flow.values], parts.unseen)


class _Parts:
    """The largest parts of a model that are graphs."""

    def __init__(self, model: nn.Module, leaf: Leaf, closed: dict[nn.Module, str]) -> None:
        self.leaf, self.closed = leaf, closed
        self.found: list[Flow] = []
        self.unseen: dict[nn.Module, str] = {}
        self.kept = {inner for module in model.modules() for inner in kept_by(module)}
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
        for part in _closed_parts(root, set() if flow is None else flow.opened):
            if flow is None and not wraps(root) and self.kept.intersection(part.modules()):
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

    def _is_node(self, module: nn.Module) -> bool:
        return self._atom(module) or hooked(module) or wraps(module) or module in self.closed


def _closed_parts(module: nn.Module, opened: set[nn.Module]) -> list[nn.Module]:
    """The outermost modules inside of which no graph looked."""
    found: list[nn.Module] = []
    for child in module.children():
        if child in opened or type(child) in (nn.ModuleList, nn.ModuleDict):
            found += _closed_parts(child, opened)
        else:
            found.append(child)
    return found


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from _children(child)
        else:
            yield child


@contextmanager
def _watched(found: list[Flow], closed: dict[nn.Module, str]) -> Iterator[None]:
    """Within it, each part's first call is compared with its graph, which is given its inputs."""
    handles = []
    for flow in found:
        watch = _Watch(flow, closed)
        handles.append(flow.root.register_forward_pre_hook(watch.begins, with_kwargs=True))
        handles.append(flow.root.register_forward_hook(watch.ends))
        handles += [module.register_forward_pre_hook(watch.calls) for module in watch.nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """Of one part: what its graph calls in its first call, and what its own code calls."""

    def __init__(self, flow: Flow, closed: dict[nn.Module, str]) -> None:
        self.flow, self.closed = flow, closed
        called = (flow.module(node) for node in flow.graph.nodes)
        script = torch.jit.ScriptModule, NoneType  # which take no hooks
        self.nodes = {module for module in called if not isinstance(module, script)}
        self.log: list[nn.Module] = []
        self.shown: list[nn.Module] = []
        self.done = False

    def calls(self, module: nn.Module, _given: Any) -> None:
        if not self.done:
            self.log.append(module)

    def begins(self, root: nn.Module, given: Any, named: Any) -> None:
        if self.done:
            return
        self.log = []
        try:
            bound = inspect.signature(root.forward).bind(*given, **named)
            bound.apply_defaults()
            values = tree_map_only(Tensor, Tensor.clone, dict(bound.arguments))
            self.flow.values.update(_Interpreter(self.flow, values).seen())
        except Exception as error:
            self.closed.setdefault(root, f"its graph does not run on the example: {error}")
        self.shown, self.log = self.log, []

    def ends(self, root: nn.Module, _given: Any, _output: Any) -> None:
        if not self.done and self.shown != self.log:
            why = "on the example it runs other layers than its graph shows"
            self.closed.setdefault(root, why)
        self.done = True


class _Interpreter(fx.Interpreter):
    """Runs a graph as the module would run, and keeps the shapes."""

    def __init__(self, flow: Flow, given: dict[str, Any]) -> None:
        super().__init__(flow.root, graph=flow.graph)
        self.given = given
        self.kept: dict[fx.Node, Any] = {}

    def seen(self) -> dict[fx.Node, Any]:
        self.run()
        return self.kept

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.given[str(target).lstrip("*")]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.kept[n] = tree_map_only(Tensor, lambda t: Shape(tuple(t.shape)), value)
        return value
