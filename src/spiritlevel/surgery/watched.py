"""What goes where in an eval() forward pass, shown by graphs that an example's run bears out.

A graph is taken only where the example runs just what it shows: the same layers in the same order.
So an optional argument that a symbol takes for given, or a branch that this torch.fx cannot see,
closes the module that has it, and its children are looked at one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from spiritlevel.kernels import backend
from spiritlevel.lent.heard import removing
from spiritlevel.lent.kept import kept
from spiritlevel.surgery.flow import Flow, Parts, Shape
from spiritlevel.surgery.tracer import Leaf, Untraceable
from spiritlevel.surgery.verify import run

__all__ = ["Flows", "flows"]


@dataclass
class Flows:
    found: list[Flow]
    unseen: dict[nn.Module, str]
    """Modules of which no graph shows how they are used, and why."""


def flows(model: nn.Module, example: Any, leaf: Leaf) -> Flows:
    """Of a model in eval(); modules for which `leaf` holds are nodes."""
    closed: dict[nn.Module, str] = {}
    while True:
        parts = Parts(model, leaf, closed)
        known = len(closed)
        for number, each in enumerate((example, *_other_sizes(example))):
            try:
                with _watched(parts), kept(model), backend.use("aten"):
                    run(model, each)
            except Exception:  # other sizes it need not take
                if number == 0:
                    raise
        if len(closed) == known:
            break
    for flow in parts.found:
        if not flow.values:
            why = "the example does not come by"
            parts.unseen.update(dict.fromkeys(flow.root.modules(), why))
    return Flows([flow for flow in parts.found if flow.values], parts.unseen)


def _other_sizes(example: Any) -> list[Any]:
    """The example with a sample more, and with more positions: what a reshape or a padding does
    there it may not have done."""
    tensors = [t for t in tree_leaves(example) if isinstance(t, Tensor) and t.dim()]
    if not tensors or not all(t.numel() for t in tensors):
        return []
    samples = len(tensors[0])

    def grown(tensor: Tensor, batch: int, second: int, more: int) -> Tensor:
        for axis in range(tensor.dim()):
            by = batch if axis == 0 and len(tensor) == samples else 0
            by = second if axis == 1 else more * (axis - 1) if axis > 1 else by
            if by:
                places = torch.arange(tensor.shape[axis] + by, device=tensor.device)
                tensor = tensor.index_select(axis, places % tensor.shape[axis])
        return tensor

    def all_grown(*by: int) -> Any:
        return tree_map_only(Tensor, lambda tensor: grown(tensor, *by), example)

    return [all_grown(1, 0, 0), all_grown(0, 1, 0), all_grown(0, 0, 1), all_grown(1, 0, 3)]


@contextmanager
def _watched(parts: Parts) -> Iterator[None]:
    """Within it, each part's first call is compared with its graph, which is given its inputs."""
    watches = [_Watch(flow, parts) for flow in parts.found]
    with removing([hook for watch in watches for hook in watch.hooks()]):
        try:
            yield
            for watch in watches:
                watch.judge()
        finally:
            for watch in reversed(watches):
                watch.stop()


class _Watch:
    """Of one part: what its graph does in its first call, and what its own code does."""

    def __init__(self, flow: Flow, parts: Parts) -> None:
        self.flow, self.parts = flow, parts
        called = (flow.module(node) for node in flow.graph.nodes)
        script = torch.jit.ScriptModule, NoneType  # which take no hooks
        self.nodes = {module for module in called if not isinstance(module, script)}
        self.log: _Log | None = None
        self.shown: list[Any] = []
        self.found: dict[fx.Node, Any] = {}
        self.why = ""
        self.done = False

    def hooks(self) -> Iterator[Any]:
        root = self.flow.root
        yield root.register_forward_pre_hook(self.begins, with_kwargs=True)
        yield root.register_forward_hook(self.ends)
        for module in self.nodes:
            yield module.register_forward_pre_hook(self.enters)
            yield module.register_forward_hook(self.leaves)

    def enters(self, module: nn.Module, _given: Any) -> None:
        if self.log is not None:
            self.log.done.append(module)
            self.log.depth += 1

    def leaves(self, _module: nn.Module, _given: Any, _output: Any) -> None:
        if self.log is not None:
            self.log.depth -= 1

    def begins(self, root: nn.Module, given: Any, named: Any) -> None:
        if self.done:
            return
        try:
            bound = inspect.signature(root.forward).bind(*given, **named)
            self.parts.refuse_options(root, self.flow, bound)
            bound.apply_defaults()
            values = tree_map_only(Tensor, Tensor.clone, dict(bound.arguments))
            self.log = _Log()
            with self.log:
                self.found = _Interpreter(self.flow, values).seen()
        except Exception as error:
            self.log, self.done = None, True
            told = f"its graph does not run on the example: {error}"
            self.why = str(error) if isinstance(error, Untraceable) else told
            return
        self.shown, self.log = self.log.done, _Log()
        self.log.__enter__()  # type: ignore[no-untyped-call]

    def ends(self, _root: nn.Module, _given: Any, _output: Any) -> None:
        if self.log is None:
            return
        if self.shown != self.log.done:
            self.why = "on the example it does other things than its graph shows"
        self.stop()

    def judge(self) -> None:
        """Once the model has come to its end, which it need not for other sizes."""
        if self.why:
            self.parts.closed.setdefault(self.flow.root, self.why)
        elif self.found:
            self.flow.values.append(self.found)

    def stop(self) -> None:
        if self.log is not None:
            self.log.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.log, self.done = None, True


class _Log(TorchFunctionMode):
    """The layers that a part calls, and the functions of torch outside of them, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Any] = []
        self.depth = 0
        """Of layers within layers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if self.depth == 0 and name not in _ASKS:
            self.done.append(name)
        return func(*args, **(kwargs or {}))


_ASKS = frozenset(("__get__", "size", "dim", "numel", "stride", "is_floating_point", "__len__"))


class _Interpreter(fx.Interpreter):
    """Runs a graph as the module would run, and keeps the shapes."""

    def __init__(self, flow: Flow, given: dict[str, Any]) -> None:
        super().__init__(flow.root, graph=flow.graph)
        self.given = given
        self.shapes: dict[fx.Node, Any] = {}

    def seen(self) -> dict[fx.Node, Any]:
        self.run()
        return self.shapes

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.given[str(target).lstrip("*")]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.shapes[n] = tree_map_only(Tensor, lambda t: Shape(tuple(t.shape)), value)
        return value
