"""Who feeds whom in a model, without running it: graphs of torch.fx.

The model is traced whole; where its own code is no graph, each of its parts is, down to its
Sequentials. What no graph shows is absent here: "not known" is an answer, an error is not.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from spiritlevel.doctor.sums import NOT_OF_ZERO, WEIGHING, Zero, name_of, operation
from spiritlevel.probe.layers import WEIGHT_LAYERS, norm_places
from spiritlevel.surgery.reach import looked_into
from spiritlevel.surgery.tracer import hooked, layer, traced_in
from spiritlevel.surgery.work import wraps

__all__ = ["WEIGHTS", "Step", "Structure"]

WEIGHTS = (*WEIGHT_LAYERS, nn.modules.conv._ConvTransposeNd)
"""Layers of a weight that a norm may follow."""


class Step(NamedTuple):
    """A module or a function that data goes through."""

    name: str
    """The module's class, or the function's name."""
    path: str
    """The module's; "" where it is a function."""
    module: nn.Module | None
    node: fx.Node


class Structure:
    """What graphs of `model` show. It is built without an error for any model."""

    def __init__(self, model: nn.Module) -> None:
        self._paths = {module: path for path, module in model.named_modules()}
        self._norms = {model.get_submodule(path) for path in norm_places(model)}
        self._calls: dict[nn.Module, list[fx.Node]] = {}
        self._roots: dict[fx.Graph, nn.Module] = {}
        self._holders: dict[nn.Module, nn.Module] = {}
        """Part -> the module inside of whose graph it stays closed, or which has no graph."""
        self._untraced: set[nn.Module] = set()
        self._apart: set[nn.Module] = set()
        """Parts that are not called in the graph of what holds them."""
        self._seen: dict[nn.Module, set[nn.Module]] = {}
        """Module without a graph -> its parts that it may look into. Slow, so only when asked."""
        self._model = model
        self._study(model)

    def calls(self, module: nn.Module) -> int:
        """How often the graphs show it called; 0 where none shows it."""
        return len(self._calls.get(module, ()))

    def sure(self, module: nn.Module) -> bool:
        """Whether all that reads its output is known: no code that is no graph may look at it."""
        nodes = self._calls.get(module, ())
        return bool(nodes) and all(self._whole(self._roots[node.graph]) for node in nodes)

    def before(self, module: nn.Module) -> list[list[Step]]:
        """For each call, what its input came through, the nearest first, until several join.

        An end that is not the model's input may have more before it than the graphs show.
        """
        return [list(self._back(node)) for node in self._calls.get(module, ())]

    def after(self, step: Step) -> list[Step]:
        """What reads the output of this step."""
        return [self._step(user) for user in step.node.users if not _is_number(user)]

    def readers(self, module: nn.Module) -> list[Step]:
        """What reads its output, all calls together; none where that is not known."""
        nodes = self._calls.get(module, ())
        return [self._step(user) for node in nodes for user in node.users if not _is_number(user)]

    def feeds(self, module: nn.Module, wanted: Callable[[nn.Module], bool]) -> bool:
        """Whether its output is known to go, through whatever, into a module that is wanted."""
        todo = [user for node in self._calls.get(module, ()) for user in node.users]
        seen: set[fx.Node] = set()
        while todo:
            user = todo.pop()
            if user in seen or _is_number(user):
                continue
            seen.add(user)
            part = user.meta.get("module") if user.op == "call_module" else None
            if part is not None and any(map(wanted, part.modules())):
                return True
            calls = (self._outside(user) or []) if user.op == "output" else [user]
            todo += [then for call in calls for then in call.users]
        return False

    def ends_in_sum(self, module: nn.Module) -> bool | None:
        """Whether other data is left as it is by what this output is added to it as, where it is 0.

        True also where it is given what it adds itself, False where a weight, another norm or what
        is not 0 at 0 comes first, None where that is not known, as behind a ReLU, which gives 0 no
        gradient.
        """
        nodes = self._calls.get(module, ())
        found = [self._summed(node) for node in nodes]
        if any(found):
            return True
        return None if not found or None in found else False

    # ---- tracing ---------------------------------------------------------------------------------

    def _study(self, root: nn.Module) -> None:
        """Only what holds a norm: of the rest nothing is asked."""
        shown = self._trace(root)
        for part in self._parts(root, shown or set()):
            if part in self._holders or not self._norms.intersection(part.modules()):
                continue
            self._holders[part] = root
            if shown is None:
                self._untraced.add(root)
            elif part not in self._calls:
                self._apart.add(part)
            self._study(part)

    def _trace(self, root: nn.Module) -> set[nn.Module] | None:
        """The modules that its graph shows, closed or opened; None where there is no graph."""
        if self._closed(root) or not any(True for _ in root.children()):
            return None
        try:
            with warnings.catch_warnings():
                # Of the user's code, who hears it where it runs.
                warnings.simplefilter("ignore")
                tracer = traced_in(root, self._closed, training=True)
        except Exception:  # whatever the user's code does with a symbol
            return None
        self._roots[tracer.graph] = root
        for node in tracer.graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(node.meta["module"], []).append(node)
        # Not `tracer.opened`: what it opened within a module that it had to close is not shown.
        within = {path for node in tracer.graph.nodes for path, _ in node.meta["stack"]}
        return {root.get_submodule(path) for path in within} | {
            node.meta["module"] for node in tracer.graph.nodes if node.op == "call_module"
        }

    def _whole(self, part: nn.Module) -> bool:
        """Whether the part is called as a whole, and nothing around it looks inside."""
        while part in self._holders:
            holder = self._holders[part]
            if part in self._apart:
                return False
            if holder in self._untraced and not wraps(holder):
                if holder not in self._seen:
                    self._seen[holder] = _looked_into(holder)
                if part in self._seen[holder]:
                    return False
            part = holder
        return True

    def _parts(self, module: nn.Module, shown: set[nn.Module]) -> list[nn.Module]:
        """The outermost modules inside of which the graph does not look."""
        found: list[nn.Module] = []
        for child in module.children():
            called = child in self._calls
            opened = not called and any(inner in shown for inner in child.modules())
            if opened or type(child) in (nn.ModuleList, nn.ModuleDict):
                found += self._parts(child, shown)
            else:
                found.append(child)
        return found

    def _closed(self, module: nn.Module) -> bool:
        return layer(module) or module in self._norms or hooked(module) or wraps(module)

    # ---- walking ---------------------------------------------------------------------------------

    def _step(self, node: fx.Node) -> Step:
        module = node.meta.get("module") if node.op == "call_module" else None
        if module is not None:
            return Step(type(module).__name__, self._paths.get(module, ""), module, node)
        return Step(name_of(node), "", None, node)

    def _back(self, node: fx.Node) -> Iterator[Step]:
        while True:
            # A fused norm's second input is what it adds to the first.
            inputs = _inputs(node)[: 1 if node.meta.get("module") in self._norms else None]
            if len(inputs) != 1 or inputs[0].op in ("placeholder", "get_attr"):
                return
            node = inputs[0]
            yield self._step(node)

    def _gives_sum(self, node: fx.Node) -> bool:
        """A fused norm that is given what it adds."""
        return node.meta.get("module") in self._norms and len(_inputs(node)) > 1

    def _ends(self, node: fx.Node) -> bool:
        """Whether it makes something else of a constant, or of what is 0."""
        module = node.meta.get("module")
        if module is None:
            return operation(node) in WEIGHING
        return module in self._norms or isinstance(module, (*WEIGHTS, *NOT_OF_ZERO))

    def _outside(self, output: fx.Node) -> list[fx.Node] | None:
        """Where a part is called whose output this is; None where that is not known."""
        root = self._roots[output.graph]
        return [] if root is self._model else (self._calls.get(root) or None)

    def _summed(self, start: fx.Node) -> bool | None:
        """Whether what is 0 at `start` leaves as it is what it is added to.

        A node is met as what it has become: `Zero`.
        """
        if self._gives_sum(start):
            return True
        todo, known = [(user, Zero()) for user in start.users], True
        seen: set[tuple[fx.Node, Zero]] = set()
        while todo:
            user, zero = todo.pop()
            if (user, zero) in seen or _is_number(user):
                continue
            seen.add((user, zero))
            if self._gives_sum(user) or zero.added(user, len(_inputs(user))):
                if not (zero.vague or zero.dead):
                    return True
                known = False
            elif user.op == "output":
                calls = self._outside(user)
                known &= calls is not None or (zero.dead and not zero.vague)
                todo += [(then, zero) for call in calls or () for then in call.users]
            elif not self._ends(user):
                changed = zero.through(user, len(_inputs(user)) > 1)
                known &= changed is not None
                if changed is not None:
                    todo += [(then, changed) for then in user.users]
        return False if known else None


_NUMBERS: tuple[Any, ...] = (getattr, len, torch.numel)
_NUMBER_METHODS = frozenset(("size", "dim", "ndimension", "numel", "nelement", "stride", "item"))
_ARITHMETIC: tuple[Any, ...] = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv),
    *(operator.mod, operator.pow, operator.neg, operator.getitem),
)


def _is_number(node: fx.Node) -> bool:
    """Whether it is one of a tensor's sizes or other attributes, or is computed of such."""
    if node.op == "call_method":
        return node.target in _NUMBER_METHODS
    if node.op != "call_function":
        return False
    if node.target in _NUMBERS:
        return True
    inputs = node.all_input_nodes
    return node.target in _ARITHMETIC and bool(inputs) and all(map(_is_number, inputs))


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The data that it reads, without numbers and the model's own tensors."""
    return [each for each in node.all_input_nodes if each.op != "get_attr" and not _is_number(each)]


def _looked_into(module: nn.Module) -> set[nn.Module]:
    try:
        return set(looked_into(module))
    except Exception:  # code that no parser of ours foresaw: then nothing is sure
        return set(module.modules())
