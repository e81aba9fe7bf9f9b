"""Which batch norms are merged into which layers, and why the others stay.

A batch norm goes into the layers before it where each of their calls is read by it alone, in all of
its calls; else into the layer after it, where that reads nothing else of the batch norm's kind and
pads with nothing that the shift would miss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from spiritlevel.surgery.carried import LAYERS, Tracks, residual_of
from spiritlevel.surgery.eligible import adds, places
from spiritlevel.surgery.flow import Flow, Shape
from spiritlevel.surgery.hidden import hidden_in, modules_in
from spiritlevel.surgery.in_eval import InEval, in_eval, is_norm
from spiritlevel.surgery.log import Entry
from spiritlevel.surgery.merging import why_not, why_not_before
from spiritlevel.surgery.watched import Flows

__all__ = ["Merge", "Part", "Plan", "plan"]


@dataclass(frozen=True)
class Part:
    """A layer by its path, and which channel of the norm each of its channels is, or -1."""

    layer: str
    channels: Tensor


@dataclass(frozen=True)
class Merge:
    norm: str
    parts: tuple[Part, ...]
    before: bool
    """Whether the norm stands before the layer."""
    rank: int | None
    """Of the norm's input, where a linear layer is beside it; it takes all."""

    def entry(self) -> Entry:
        layers = tuple(part.layer for part in self.parts)
        where = "that follows it" if self.before else "before it"
        kind = "the layer" if len(layers) == 1 else "the layers"
        return Entry("folded", (self.norm, *layers), f"the norm into {kind} {where}")


@dataclass
class Plan:
    merges: list[Merge] = field(default_factory=list)
    """In the order in which they are to be done."""
    norms: dict[str, InEval] = field(default_factory=dict)
    """What the merged ones do."""
    left: list[Entry] = field(default_factory=list)

    def same(self) -> list[str]:
        """The modules whose outputs must be what they were: the last of those merged in a row."""
        into = [{part.layer for part in merge.parts} for merge in self.merges if not merge.before]
        found = []
        for merge in self.merges:
            layers = {part.layer for part in merge.parts}
            if sum(bool(layers & each) for each in into) == (0 if merge.before else 1):
                found += sorted(layers) if merge.before else [merge.norm]
        return found

    def entries(self) -> list[Entry]:
        found = [*(merge.entry() for merge in self.merges), *self.left]
        return found or [Entry("left", (), "there is no batch norm to fold")]


def plan(model: nn.Module, seen: Flows) -> Plan:
    """For a model in eval(), whose graphs are given."""
    return _Planner(model, seen).made()


class _No(Exception):
    """Why a norm cannot be merged."""


class _Planner:
    def __init__(self, model: nn.Module, seen: Flows) -> None:
        self.model, self.seen = model, seen
        self.paths = {module: path for path, module in model.named_modules()}
        self.places = places(model)
        self.calls: dict[nn.Module, list[tuple[Flow, fx.Node]]] = {}
        for flow in seen.found:
            for node in flow.graph.nodes:
                if (module := flow.module(node)) is not None:
                    self.calls.setdefault(module, []).append((flow, node))
        opened = {module for flow in seen.found for module in flow.opened}
        closed = [module for module in model.modules() if module not in opened]
        self.hidden = {inner for module in closed for inner in hidden_in(module)}
        for module in model.modules():
            for inner in modules_in([module._forward_hooks, module._forward_pre_hooks]):
                self.hidden.update(inner.modules())
        self.hooked = {
            inner: path or "the model itself"
            for path, module in model.named_modules()
            if module._forward_hooks or module._forward_pre_hooks
            for inner in module.modules()
            if inner is not module
        }
        self.gone: set[nn.Module] = set()
        self.plan = Plan()

    def made(self) -> Plan:
        norms = [module for module in self.model.modules() if is_norm(module)]
        held, why = dict[nn.Module, InEval](), dict[nn.Module, str]()
        for norm in norms:
            adds = any(residual_of(node) is not None for _, node in self.calls.get(norm, ()))
            found = self._why_unseen(norm) or self._why_not(norm) or in_eval(norm, adds=adds)
            if isinstance(found, str):
                why[norm] = found
            else:
                held[norm] = found
        changed = True
        while changed:
            changed = False
            for norm in [norm for norm in held if norm not in self.gone]:
                try:
                    self._merge(norm, held[norm])
                    changed = True
                    why.pop(norm, None)
                except _No as error:
                    why[norm] = str(error)
        self.plan.left = [Entry("left", (self.paths[n],), why[n]) for n in norms if n in why]
        self.plan.left += self._functions()
        return self.plan

    def _merge(self, norm: nn.Module, held: InEval) -> None:
        """Raises _No."""
        try:
            parts, before = self._after(norm), False
        except _No as error:
            try:
                parts, before = self._before(norm, held), True
            except _No as other:
                raise _No(f"{error}; {other}") from None
        path = self.paths[norm]
        named = tuple(Part(self.paths[layer], each) for layer, each in parts.items())
        rank = self._rank(norm) if any(isinstance(each, nn.Linear) for each in parts) else None
        self.plan.merges.append(Merge(path, named, before, rank))
        self.plan.norms[path] = held
        self.gone.add(norm)

    def _after(self, norm: nn.Module) -> dict[nn.Module, Tensor]:
        """The layers before a norm, which is merged into them."""
        parts: dict[nn.Module, Tensor] = {}
        reached: set[fx.Node] = set()
        for flow, tracks, node in self._tracks(norm):
            found = tracks.back(node)
            if isinstance(found, str):
                raise _No(found)
            for call, channels in found.items():
                layer = flow.module(call)
                assert layer is not None
                self._join(parts, layer, channels)
                reached.add(call)
        self._check(parts, reached)
        return parts

    def _before(self, norm: nn.Module, held: InEval) -> dict[nn.Module, Tensor]:
        """The layer after a norm."""
        if not held.plain:
            raise _No("an activation stands between it and what follows")
        parts: dict[nn.Module, Tensor] = {}
        reached: set[fx.Node] = set()
        for flow, tracks, node in self._tracks(norm):
            found = tracks.ahead(node)
            if isinstance(found, str):
                raise _No(found)
            layer = flow.module(found[0])
            assert layer is not None
            self._join(parts, layer, found[1])
            reached.add(found[0])
        self._check(parts, reached)
        for layer in parts:
            if why := why_not_before(layer, held.shift):
                raise _No(f"{self.paths[layer]} follows it: {why}")
        return parts

    def _rank(self, norm: nn.Module) -> int | None:
        flow, node = self.calls[norm][0]
        shape = flow.values[0].get(node.all_input_nodes[0])
        return len(shape.of) if isinstance(shape, Shape) else None

    def _tracks(self, norm: nn.Module) -> Iterator[tuple[Flow, Tracks, fx.Node]]:
        """Each call, in each size of the inputs."""
        for flow, node in self.calls[norm]:
            for values in flow.values:
                yield flow, Tracks(flow, values, self._lets_through), node

    def _lets_through(self, module: nn.Module) -> bool:
        return module in self.gone and self.plan.norms[self.paths[module]].plain

    def _join(self, parts: dict[nn.Module, Tensor], layer: nn.Module, channels: Tensor) -> None:
        if not torch.equal(parts.setdefault(layer, channels), channels):
            raise _No(
                f"{self.paths[layer]} has other channels of it in another call, or for inputs of "
                "another size"
            )

    def _check(self, layers: Iterable[nn.Module], reached: set[fx.Node]) -> None:
        for layer in layers:
            why = self._why_unseen(layer) or why_not(layer)
            if why is None and any(node not in reached for _, node in self.calls[layer]):
                why = "is shared: it is called elsewhere, too"
            if why is None and not isinstance(layer, LAYERS):
                why = "is no convolution and no linear layer"
            if why:
                raise _No(f"{self.paths[layer]} {why}")

    def _why_unseen(self, module: nn.Module) -> str | None:
        """Why not all uses of a module can be known."""
        calls = self.calls.get(module, [])
        if not calls:
            return self.seen.unseen.get(module, "is called in no graph of the model")
        flows = {id(flow): flow for flow, _ in calls}
        if len(flows) > 1:
            return "is called in several parts of the model"
        (flow,) = flows.values()
        if module in self.hooked:
            return f"is inside of {self.hooked[module]}, which is hooked; remove the hook before"
        if module in self.hidden:
            return "is kept by a hook, or by another module, which is no graph"
        if flow.root is not self.model and len(self.places[module]) > 1:
            return f"is shared: it has {len(self.places[module])} names"
        path = next(p for p, m in flow.root.named_modules() if m is module)
        read = [str(node.target) for node in flow.graph.nodes if node.op == "get_attr"]
        if any(name.startswith(f"{path}.") for name in read):
            return "has its weights used beside its call"
        return None

    def _why_not(self, norm: nn.Module) -> str | None:
        """Why what is seen of its calls is not all."""
        more = adds(norm)
        for _, node in self.calls[norm]:
            if len(node.args) + len(node.kwargs) > 1 + more:
                return "is called with other arguments than its input"
        for parent, _ in self.places[norm]:
            others = [m for m in parent.children() if is_norm(m) and m not in self.calls]
            if type(parent) in (nn.ModuleList, nn.ModuleDict) and others:
                return "is one of several, of which its model chooses"
        return None

    def _functions(self) -> list[Entry]:
        """Batch norms that are calls of a function."""
        found: Counter[str] = Counter()
        for flow in self.seen.found:
            for node in flow.graph.nodes:
                name = getattr(node.target, "__name__", str(node.target))
                if node.op == "call_function" and "batch_norm" in name:
                    found[self.paths[flow.root]] += 1
        return [
            Entry("left", (path,), f"{count} calls of a batch norm function, which is no module")
            for path, count in found.items()
        ]
