"""Fusion by graphs: find the patterns, choose how each is merged, merge them, and look again."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from spiritlevel.surgery import rewrite
from spiritlevel.surgery.log import Entry
from spiritlevel.surgery.patterns import Pattern, match, merge
from spiritlevel.surgery.reach import looked_into
from spiritlevel.surgery.trace import Difference, Trace, compare, read_modes_when_run, trace
from spiritlevel.surgery.tracer import Slot, Untraceable, closed_parts, layer
from spiritlevel.surgery.work import Work, wraps

__all__ = ["by_graphs"]


def by_graphs(work: Work, root: nn.Module) -> None:
    """Fuse what a graph of `root` shows, or graphs of its parts."""
    if isinstance(root, torch.jit.ScriptModule):
        work.untraced[root] = "it is compiled by TorchScript"
    if layer(root) and not wraps(root):
        return
    traced = _by_graph(work, root)
    called = {} if traced is None else _calls(traced)
    seen = {} if traced is not None or wraps(root) else looked_into(root)
    for part in closed_parts(root, set() if traced is None else traced.opened):
        times = len(called.get(part, ()))
        for norm in work.open.intersection(part.modules()) if times > 1 else ():
            work.leave(norm, f"is called {times} times in a pass")
        if traced is None and not wraps(root) and work.hidden.intersection(part.modules()):
            seen.setdefault(part, "another module keeps a part of it")
        if part in seen:
            work.seen.update({norm: seen[part] for norm in part.modules() if norm in work.open})
        elif times or traced is None:
            by_graphs(work, part)


def _by_graph(work: Work, root: nn.Module) -> Trace | None:
    """None where the code of `root` itself is no graph."""
    while True:
        mark, found, reasons = work.journal.mark(), dict(work.found), dict(work.reasons)
        try:
            if root in work.untraced:
                raise Untraceable(work.untraced[root])
            if wraps(root):
                raise Untraceable("it wraps another module")
            traced = trace(root, work.closed)
            _Graph(work, traced).fuse()
            work.untraced.update(traced.closed)
            return traced
        except (_Again, Untraceable) as error:
            work.journal.back_to(mark)
            work.found, work.reasons = found, reasons
            if isinstance(error, Untraceable):
                work.untraced[root] = str(error)
                return None


class _Graph:
    def __init__(self, work: Work, traced: Trace) -> None:
        self.work, self.traced, self.root = work, traced, traced.root
        self.called = _calls(traced)

    def fuse(self) -> None:
        """Raises _Again where a module proved to be other than it seemed."""
        for norm in [norm for norm in self.called if norm in self.work.open]:
            times = len(self.called[norm])
            if times > 1:
                self.work.leave(norm, f"is called {times} times in a pass")
        matched = self._match()
        self._apply(matched, self._choose(matched))
        for pattern in sorted(matched.values(), key=lambda pattern: pattern.norm):
            merge(pattern, self.traced.graph)
        self._check()

    def _match(self) -> dict[nn.Module, Pattern]:
        matched: dict[nn.Module, Pattern] = {}
        for norm in [norm for norm in self.called if norm in self.work.open]:
            found = match(self.called[norm][0], self.root, self.work.open.__contains__)
            if isinstance(found, Pattern) and found.add is not None and norm in self.work.unlike:
                found = "what is added to it has another shape"
            if isinstance(found, Pattern):
                matched[norm] = found
            else:
                self.work.reasons[norm] = found
        return matched

    def _choose(self, matched: dict[nn.Module, Pattern]) -> dict[nn.Module, list[Slot]]:
        """Drop patterns that can be merged in no way; of the others, which places become empty."""
        while True:
            gone = {p.activated for p in matched.values() if p.activated is not None}
            slots = {
                norm: self._exclusive(pattern.activated, gone) for norm, pattern in matched.items()
            }
            refused = {
                norm: why
                for norm, pattern in matched.items()
                if (pattern.add is not None or not slots[norm])
                and (why := self._why_fixed(_home(pattern, self.root)))
            }
            if not refused:
                return slots
            for norm, why in refused.items():
                home = self.work.paths[_home(matched.pop(norm), self.root)]
                self.work.reasons[norm] = f"{home or 'the model'} would have to be rewritten: {why}"

    def _why_fixed(self, module: nn.Module) -> str | None:
        if module is self.root and rewrite.takes_options(module):
            return "its forward has optional arguments"
        return self.work.fixed.get(module) or rewrite.why_fixed(module)

    def _exclusive(self, node: fx.Node | None, gone: set[fx.Node]) -> list[Slot]:
        """The place to empty for an activation; [] where a call that stays comes from there."""
        if node is None or node.op != "call_module":
            return []
        act = self.root.get_submodule(str(node.target))
        slots, slot, calls = self.work.places[act], node.meta["slot"], self.called[act]
        if len(slots) == 1:
            return list(slots) if gone.issuperset(calls) else []
        if any(call.meta["slot"] is None for call in calls) or slot is None:
            return []
        mine = [call for call in calls if call.meta["slot"] == slot]
        return [slot] if gone.issuperset(mine) else []

    def _apply(self, matched: dict[nn.Module, Pattern], slots: dict[nn.Module, list[Slot]]) -> None:
        work, root = self.work, self.root
        homes: dict[nn.Module, dict[nn.Module, Pattern]] = {}
        for norm, pattern in matched.items():
            if pattern.add is not None or not slots[norm]:
                homes.setdefault(_home(pattern, root), {})
        for norm, pattern in matched.items():
            parts = [norm]
            if pattern.activated is not None and pattern.activated.op == "call_module":
                parts.append(root.get_submodule(str(pattern.activated.target)))
            paths = tuple(work.paths[part] for part in parts)
            work.found[norm] = Entry("fused", paths, str(pattern))
            work.swap(norm, pattern.act)
            if (home := _home(pattern, root)) in homes:
                homes[home][norm] = pattern
        depth = {home: len(_common(next(iter(group.values())))) for home, group in homes.items()}
        for home in sorted(homes, key=lambda home: -depth[home]):  # the innermost first
            self._rewrite(home, homes[home])
        for slot in {slot for found in slots.values() for slot in found}:
            work.absorb(slot)

    def _rewrite(self, home: nn.Module, matched: dict[nn.Module, Pattern]) -> None:
        work = self.work
        between = {
            self.root.get_submodule(path)
            for pattern in matched.values()
            for node in pattern.nodes()
            for path, _ in node.meta["stack"][len(_common(pattern)) :]
        }
        try:
            traced = trace(home, lambda module: module not in between)
            called = _calls(traced)
            if traced.closed or any(len(called.get(norm, ())) != 1 for norm in matched):
                raise Untraceable("it calls its modules in other ways than the whole model does")
            for norm in sorted(matched, key=lambda norm: called[norm][0]):
                found = match(called[norm][0], home, matched.__contains__)
                if not isinstance(found, Pattern) or found.act != matched[norm].act:
                    raise Untraceable("on its own it does not show what the whole model shows")
                merge(found, traced.graph)
            read_modes_when_run(traced)
            rewrite.install(home, traced.graph, work.journal)
        except Untraceable as error:
            work.fixed[home] = str(error)
            raise _Again from error
        bypassed = ", ".join(sorted(work.paths[module] for module in between))
        why = "its forward calls the fused layers" + (f", past {bypassed}" if bypassed else "")
        work.found[home] = Entry("rewritten", (work.paths[home],), why)

    def _check(self) -> None:
        """Trace anew; raises _Again where the graph is not the one with its patterns merged."""
        closed = self.traced.closed
        try:
            now = trace(self.root, lambda module: self.work.closed(module) or module in closed)
            compare(self.traced.graph, now.graph)
        except Difference as difference:
            at = difference.stack[-1][0] if difference.stack else ""
            self.work.untraced[self.root.get_submodule(at)] = (
                "its code depends on what it is made of"
            )
            raise _Again from None


class _Again(Exception):
    """A module proved to be other than it seemed: once more, with what is known now."""


def _calls(traced: Trace) -> dict[nn.Module, list[fx.Node]]:
    found: dict[nn.Module, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            found.setdefault(traced.root.get_submodule(node.target), []).append(node)
    return found


def _common(pattern: Pattern) -> list[Any]:
    """The calls that all nodes of the pattern happen in."""
    stacks = [node.meta["stack"] for node in pattern.nodes()]
    same = []
    for calls in zip(*stacks, strict=False):
        if len(set(calls)) > 1:
            break
        same.append(calls[0])
    return same


def _home(pattern: Pattern, root: nn.Module) -> nn.Module:
    """The smallest module that holds the pattern."""
    common = _common(pattern)
    return root.get_submodule(common[-1][0]) if common else root
