"""Which children a module may look inside of, as the source of its forward pass shows.

What is merged inside a child must not be seen from outside it. So where a forward pass is no graph,
nothing but a call may be made of a child: `self.child(x)`, `self.children[i](x)`,
`for child in self.children: x = child(x)`, `checkpoint(self.child, x)`. Code that slices a
Sequential, walks through it or asks for its class may see its parts; so may code that is not a
method of the module: a function that is given it, or that has kept it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import FunctionType

from torch import nn
from torch.utils.checkpoint import checkpoint

from spiritlevel.models.convolved import chained, convolved
from spiritlevel.models.normed import normed
from spiritlevel.surgery.hidden import hidden_in
from spiritlevel.surgery.source import (
    EVERY,
    HARMLESS,
    called,
    first_argument,
    function_of,
    is_data,
    is_torchs,
    keeps_to_itself,
    methods_of,
    runs_as_written,
)
from spiritlevel.surgery.tracer import hooked

__all__ = ["looked_into"]

_LISTS = (nn.ModuleList, nn.ModuleDict)
_CALLING = (checkpoint, 1), (len, 1), (bool, 1), (chained, 1), (convolved, 1), (normed, 2)
"""Functions, and how many of their first arguments they call as they stand, and no more."""


def looked_into(module: nn.Module) -> dict[nn.Module, str]:
    """The children, and those in its lists, of which the module may see the parts, and why."""
    name = type(module).__name__
    try:
        reader = _Reader(module)
    except (OSError, TypeError, SyntaxError, IndexError):
        why = f"{name}, which calls it, has no source that can be read"
        return {part: why for child in module.children() for part in _parts(child)}
    seen = [c for n, c in module.named_children() if reader.all or n in reader.names]
    return {part: f"{name} may look inside it" for child in seen for part in _parts(child)}


def _parts(child: nn.Module) -> Iterator[nn.Module]:
    """The module; of a list or dict, what is in it."""
    if type(child) not in _LISTS:
        yield child
        return
    for inner in child.children():
        yield from _parts(inner)


class _Reader:
    """`names` are the children that are looked into; `all` says that any may be."""

    def __init__(self, module: nn.Module) -> None:
        self.held = dict(module.named_children())
        self.lists = {name: _is_list(child) for name, child in self.held.items()}
        self.nested = {
            name
            for name, child in self.held.items()
            if _is_list(child) and all(map(_is_list, child.children()))
        }
        self.names: set[str] = set()
        self.module, self.kind = module, type(module)
        self.all = any(hidden_in(module)) or hooked(module) or not runs_as_written(module)
        self.methods = methods_of(self.kind)
        if "forward" not in self.methods:
            raise TypeError
        self.todo, done = ["forward"], set[str]()
        while self.todo:
            name = self.todo.pop()
            if name in done:
                continue
            done.add(name)
            self.all |= not self._known(name)
            for method in self.methods.get(name, ()):
                self._read(method)

    def _known(self, name: str) -> bool:
        """Whether what `self.name` is can be told: a child, data, or a method that is read here."""
        module = self.module
        if (
            name in self.held
            or name in vars(module)
            or name in {**module._parameters, **module._buffers}
        ):
            return True
        if is_torchs(self.kind, name):
            return name in HARMLESS
        value = inspect.getattr_static(self.kind, name, None)
        function = function_of(value)
        if function is None:
            return is_data(value)
        written = inspect.unwrap(function).__qualname__
        return name in self.methods and any(
            written.endswith(f"{kind.__name__}.{name}") for kind in self.kind.__mro__
        )

    def _read(self, method: ast.FunctionDef) -> None:
        self.parent = {c: p for p in ast.walk(method) for c in ast.iter_child_nodes(p)}
        self.me = first_argument(method)
        self.local = {n.arg for n in ast.walk(method) if isinstance(n, ast.arg)}
        self.local |= {
            n.id
            for n in ast.walk(method)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        self.all |= bool(method.decorator_list) and self._wrapped(method.name)
        self.walked: set[ast.AST] = set()  # lists, where they are gone through
        self.one: dict[str, set[str]] = {}  # names of a child, and which it may be
        for node in ast.walk(method):
            if isinstance(node, ast.For | ast.comprehension):
                self._each(node.target, node.iter)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._is(target, node.value)
            elif isinstance(node, ast.NamedExpr):
                self._is(node.target, node.value)
        for node in ast.walk(method):
            self._look(node)
            if isinstance(node, ast.Attribute) and self._mine(node.value):
                self.todo.append(node.attr)

    def _each(self, target: ast.expr, walked: ast.expr) -> None:
        """`target` is what a loop over `walked` gives, one by one."""
        parts = target.elts if isinstance(target, ast.Tuple) else []
        if isinstance(walked, ast.Call):
            name = getattr(walked.func, "id", getattr(walked.func, "attr", ""))
            arguments = walked.args
            if name == "enumerate" and len(parts) == 2:
                self._each(parts[1], arguments[0])
            elif name == "zip":
                for part, argument in zip(parts, arguments, strict=False):
                    self._each(part, argument)
            elif name in ("reversed", "list", "tuple", "iter") and arguments:
                self._each(target, arguments[0])
            elif name in ("items", "named_children") and len(parts) == 2:
                self._one_of(parts[1], walked.func)
            elif name in ("values", "children"):
                self._one_of(target, walked.func)
        elif isinstance(walked, ast.Subscript) and isinstance(walked.slice, ast.Slice):
            self._each(target, walked.value)
        elif self._is_me(walked) and isinstance(target, ast.Name):
            self.walked.add(walked)
            self.one.setdefault(target.id, set()).update(self.lists)
        else:
            self._one_of(target, walked)

    def _one_of(self, target: ast.expr, walked: ast.expr) -> None:
        """`walked` is a list of children, or a method that gives one."""
        if not isinstance(target, ast.Name) or not isinstance(walked, ast.Attribute):
            return
        if self.lists.get(walked.attr):
            found, gone_through = {walked.attr}, walked
        elif walked.attr in ("children", "named_children") and self._is_me(walked.value):
            found, gone_through = set(self.lists), walked
        elif isinstance(walked.value, ast.Attribute) and self.lists.get(walked.value.attr):
            found, gone_through = {walked.value.attr}, walked.value  # .items(), .values()
        elif getattr(walked.value, "attr", "") == "_modules":
            found, gone_through = set(self.lists), walked.value  # type: ignore[assignment]
        else:
            return
        self.walked.add(gone_through)
        self.one.setdefault(target.id, set()).update(found)

    def _is(self, target: ast.expr, value: ast.expr) -> None:
        """An assignment: the name of a child, or of one of a list, is looked at in its place."""
        if not isinstance(target, ast.Name):
            return
        inner = value.value if isinstance(value, ast.Subscript) else value
        if isinstance(inner, ast.Attribute) and inner.attr in self.lists:
            if isinstance(value, ast.Subscript) is self.lists[inner.attr]:
                self.walked.add(inner)
                self.one.setdefault(target.id, set()).add(inner.attr)
        elif isinstance(value, ast.Call) and (found := self._got(value)):
            self.walked.add(value)
            self.one.setdefault(target.id, set()).update(found)

    def _look(self, node: ast.AST) -> None:
        if node in self.walked:
            return
        if isinstance(node, ast.Attribute) and node.attr in EVERY and self._mine(node.value):
            self.all = True
        elif isinstance(node, ast.Attribute) and node.attr in self.lists:
            place: ast.AST = node
            up = self.parent.get(node)
            if self.lists[node.attr] and isinstance(up, ast.Subscript) and up.value is node:
                place = up
            if not self._harmless(place, {node.attr}):
                self.names.add(node.attr)
        elif isinstance(node, ast.Name) and node.id in self.one and isinstance(node.ctx, ast.Load):
            found, place, up = self.one[node.id], node, self.parent.get(node)
            if found <= self.nested and isinstance(up, ast.Subscript) and up.value is node:
                place = up
            if not self._harmless(place, found):
                self.names |= found
        elif isinstance(node, ast.Call) and called(node) == "getattr":
            found = self._got(node)
            if found and not self._harmless(node, found):
                self.names |= found
        elif self._is_me(node):
            self.all |= not self._plain(node)

    def _got(self, call: ast.Call) -> set[str]:
        """Which children getattr(self, name) may give."""
        if called(call) != "getattr" or not self._is_me(call.args[0]):
            return set()
        name = call.args[1]
        if isinstance(name, ast.Constant):
            self.todo.append(str(name.value))
            return {str(name.value)} & set(self.lists)
        self.todo += [method for method in self.methods if method != "__init__"]
        return set(self.lists)

    def _harmless(self, node: ast.AST, which: set[str]) -> bool:
        """Whether no more is made of these children here than calls, or a look at what they are."""
        up = self.parent.get(node)
        if isinstance(up, ast.Attribute):
            return all(keeps_to_itself(self.held[name], up.attr) for name in which)
        if isinstance(up, ast.Call):
            if up.func is node:
                return True
            return node in up.args[: self._calls(up.func)]
        if isinstance(up, ast.Compare):
            return all(isinstance(c, ast.Constant) and c.value is None for c in up.comparators)
        tested = isinstance(up, ast.If | ast.IfExp | ast.While) and up.test is node
        return tested or (isinstance(up, ast.UnaryOp) and isinstance(up.op, ast.Not))

    def _calls(self, function: ast.expr) -> int:
        """How many of its first arguments this function only calls, or asks their length."""
        path: list[str] = []
        while isinstance(function, ast.Attribute):
            path.insert(0, function.attr)
            function = function.value
        if not isinstance(function, ast.Name) or function.id in self.local:
            return 0
        written = [f for kind in self.kind.__mro__ for f in vars(kind).values()]
        places = [f.__globals__ for f in written if isinstance(f, FunctionType)]
        named = [here[function.id] for here in places if function.id in here]
        if path and not named:
            return 0
        may_be = named or [{"len": len, "bool": bool}.get(function.id)]
        at = [_at(found, path) for found in may_be]
        return min(next((n for each, n in _CALLING if each is found), 0) for found in at)

    def _wrapped(self, name: str) -> bool:
        """Whether what is wrapped around a method names a child."""
        function = inspect.getattr_static(self.kind, name, None)
        seen = {*self.held, *EVERY}
        while isinstance(function, FunctionType):
            inner, code = getattr(function, "__wrapped__", None), function.__code__
            if inner is None:
                return code.co_name != name  # what is around it does not tell what it wraps
            texts = {each for each in code.co_consts if isinstance(each, str)}
            if seen & {*code.co_names, *texts}:
                return True
            function = inner
        return False

    def _mine(self, node: ast.AST) -> bool:
        return self._is_me(node) or called(node) == "super"

    def _plain(self, me: ast.AST) -> bool:
        """Whether `self` is read for an attribute of a known name."""
        up = self.parent.get(me)
        if isinstance(up, ast.Call):
            return called(up) in ("super", "getattr", "hasattr", "isinstance", "type", "setattr")
        return isinstance(up, ast.Attribute)

    def _is_me(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.me and bool(self.me)


def _at(found: object, path: list[str]) -> object:
    """What a name within a module is; None where it is none."""
    for name in path:
        found = getattr(found, name, None) if inspect.ismodule(found) else None
    return found


def _is_list(module: nn.Module) -> bool:
    return type(module) in _LISTS
