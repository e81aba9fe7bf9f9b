"""A module whose forward is a graph's code, and that stays what it was in all else.

Its class becomes a subclass of its own, with one method. So `isinstance`, attributes, methods,
hooks and the `state_dict` stay; copies and pickles remember the original class and the code, not
the made one. To call the made class gives an instance of the original: such a one is not fused, and
neither must its forward be.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from spiritlevel.surgery.log import Journal
from spiritlevel.surgery.tracer import Untraceable

__all__ = ["install", "takes_options", "why_fixed"]

Import = tuple[str, str, str]
"""A name in the code, its module, and what it is there; "" for the module itself."""


def why_fixed(module: nn.Module) -> str | None:
    """Why the forward of a module cannot be written anew; None where it can."""
    kind = _original(type(module))
    if isinstance(module, fx.GraphModule):
        return None
    if isinstance(module, nn.Sequential):
        return "a Sequential runs its modules in order"
    if "forward" in vars(module):
        return "its forward is replaced on the instance"
    for name in ("__reduce__", "__reduce_ex__", "__new__", "__deepcopy__"):
        if getattr(kind, name, None) is not getattr(nn.Module, name, None):
            return f"its class has a {name} of its own"
    return None


def takes_options(module: nn.Module) -> bool:
    """Whether its forward may be called in ways that one graph does not show."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return any(p.kind is not plain or p.default is not p.empty for p in parameters)


def install(module: nn.Module, graph: fx.Graph, journal: Journal) -> None:
    """Let the module run the graph from now on. Raises Untraceable where it cannot."""
    if isinstance(module, fx.GraphModule):
        graphed = module.graph
        journal.done(lambda: setattr(module, "graph", graphed))
        graph._tracer_cls = graphed._tracer_cls
        module.graph = graph
        return
    for node in graph.nodes:
        node.type = None  # annotations are those of the original
    made = graph.python_code("self")
    kind: Any = _original(type(module))
    new = _rewritten(kind, made.src.strip() + "\n", _imports(made.globals))
    if _parameters(new) != _parameters(kind):
        raise Untraceable("its signature cannot be kept")
    before = type(module)
    journal.done(lambda: object.__setattr__(module, "__class__", before))
    module.__class__ = new


def _original(kind: type[nn.Module]) -> type[nn.Module]:
    return kind._original if issubclass(kind, _Rewritten) else kind


def _parameters(kind: type[nn.Module]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(kind.forward).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


class _Rewritten(nn.Module):
    _original: type[nn.Module]
    _source: str
    _imports: tuple[Import, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = type(self)
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _blank, (made._original, made._source, made._imports), state

    def __init_subclass__(cls, **options: Any) -> None:
        """Not the original's: nothing new is to be registered."""


@cache
def _rewritten(original: Any, source: str, imports: tuple[Import, ...]) -> type[nn.Module]:
    # Seen in tracebacks, and by torch.compile.
    file = f"<spiritlevel {original.__qualname__} {abs(hash((original, source))):x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names = {**_GIVEN, **{name: _imported(home, path) for name, home, path in imports}}
    exec(compile(source, file, "exec"), names)
    forward: Callable[..., Any] = names["forward"]
    forward.__annotations__ = dict(getattr(original.forward, "__annotations__", {}))
    forward.__doc__ = original.forward.__doc__

    def make(cls: Any, *args: Any, **kwargs: Any) -> nn.Module:
        return original(*args, **kwargs)  # type: ignore[no-any-return]

    metaclass = type("Rewritten", (type(original),), {"__call__": make})
    return metaclass(  # type: ignore[no-any-return]
        original.__name__,
        (_Rewritten, original),
        {
            "forward": forward,
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "_original": original,
            "_source": source,
            "_imports": imports,
        },
    )


def _blank(original: Any, source: str, imports: tuple[Import, ...]) -> nn.Module:
    kind = _rewritten(original, source, imports)
    module: nn.Module = kind.__new__(kind)
    return module


_GIVEN: dict[str, Any] = {
    "torch": torch,
    "device": torch.device,
    "inf": math.inf,
    "nan": math.nan,
    "NoneType": type(None),
}


def _imports(names: dict[str, Any]) -> tuple[Import, ...]:
    """How a pickle finds them again. Raises Untraceable."""
    found = []
    for name, value in names.items():
        if _GIVEN.get(name) is value:
            continue
        home, path = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if inspect.ismodule(value):
            home, path = value.__name__, ""
        try:
            known = home is not None and _imported(home, path) is value
        except (ImportError, AttributeError):
            known = False
        if not known:
            raise Untraceable(f"it uses {name}, which cannot be imported by its name")
        found.append((name, str(home), path))
    return tuple(sorted(found))


def _imported(home: str, path: str) -> Any:
    value: Any = importlib.import_module(home)
    for name in path.split(".") if path else ():
        value = getattr(value, name)
    return value
