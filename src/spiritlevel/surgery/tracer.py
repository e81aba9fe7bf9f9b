"""torch.fx's tracer, with closed modules where it would go wrong unseen.

torch.fx runs a forward pass once, on symbols. What it cannot see then would be lost or frozen in
the graph, so a module is opened only where nothing of the kind is met, and else is one node. It is
met as an exception: a branch on a value, an operation on a tensor that is no input, parameter or
buffer, an attribute set anew, a random choice, a change of grad mode, of autocast or of how tensors
are saved for the backward pass, as a checkpoint makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from spiritlevel.lent.kept import Attributes
from spiritlevel.lent.state import modes_now, random_states, set_random_states
from spiritlevel.surgery.in_place import Proxy

__all__ = [
    "Call",
    "Leaf",
    "Mode",
    "Slot",
    "Stack",
    "Untraceable",
    "closed_parts",
    "hooked",
    "layer",
    "touched",
    "traced_in",
]

Leaf = Callable[[nn.Module], bool]
Call = tuple[str, int]
"""The path of a module, and which call of the trace it is."""
Stack = tuple[Call, ...]


class Slot(NamedTuple):
    """Where a module is registered."""

    parent: nn.Module
    name: str


class Untraceable(Exception):
    """Why a module is no graph."""


def hooked(module: nn.Module) -> bool:
    """Whether somebody listens to, or changes, what goes through it."""
    return any(
        getattr(module, name)
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )


def touched(module: nn.Module) -> str | None:
    """What somebody has done to this one module that its class does not tell; None for nothing."""
    if hooked(module):
        return "is hooked"
    return "has its forward replaced on the instance" if "forward" in vars(module) else None


def layer(module: nn.Module) -> bool:
    """Whether it is an atom: torch's own layers and ours, every batch norm, scripts."""
    home = type(module).__module__
    return (
        (home.startswith(("torch.nn.", "torch.ao.", "spiritlevel.nn.")) and not _container(module))
        or isinstance(module, torch.jit.ScriptModule | _BatchNorm)
        or parametrize.is_parametrized(module)
    )


def _container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def closed_parts(module: nn.Module, opened: set[nn.Module]) -> list[nn.Module]:
    """The outermost modules inside of which no graph looked."""
    found: list[nn.Module] = []
    for child in module.children():
        if child in opened or type(child) in (nn.ModuleList, nn.ModuleDict):
            found += closed_parts(child, opened)
        else:
            found.append(child)
    return found


class Mode(int):
    """Stands for `training` while a module is traced, so that its readers are known."""

    owner: nn.Module


def traced_in(
    root: nn.Module, leaf: Leaf, *, training: bool, given: dict[str, Any] | None = None
) -> Tracer:
    """A tracer after its work, in train() or eval(); `given` are arguments that have a value.

    Raises Untraceable.
    """
    tracer = Tracer(leaf)
    modes_back = modes_now(root)
    try:
        for module in root.modules():
            mode = Mode(training)
            mode.owner = module
            module.training = mode  # type: ignore[assignment]
        with _NoNumbers(), _unchanged(root):  # type: ignore[no-untyped-call]
            if "forward" in root.__dict__:
                raise Untraceable("its forward is replaced on the instance")
            tracer.trace(root, given)
    except Exception as error:
        raise Untraceable(_told(error)) from error
    finally:
        modes_back()
    return tracer


class Tracer(fx.Tracer):
    """`obstacles` are the modules that it could not open, and why; `opened` those that it did."""

    proxy_buffer_attributes = True
    trace_asserts = True

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self.leaf = leaf
        self.obstacles: dict[nn.Module, str] = {}
        self.opened: set[nn.Module] = set()
        self._stack: list[Call] = []
        self._children = [0]  # called so far, for each module of the stack
        self._serial = 0
        self._state = _state()
        self._proxies: dict[str, fx.Proxy] = {}

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _state() != self._state:
            raise Untraceable("it changes grad mode, autocast or what is saved as it runs")
        node = super().create_node(*args, **kwargs)
        node.meta["stack"] = tuple(self._stack)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor) and a not in self.tensor_attrs and not self._known(a):
            raise Untraceable(_OTHER_TENSOR)
        return super().create_arg(a)

    def _known(self, tensor: torch.Tensor) -> bool:
        named = (*self.root.parameters(), *self.root.buffers())
        return any(tensor is each for each in named)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        self._proxies = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        path = self.path_of_module(m)
        slot = self._slot(m)
        if type(m) is nn.Identity and not hooked(m) and len(args) == 1:
            return args[0]
        if not self.leaf(m):
            before = len(self.graph.nodes)
            self._serial += 1
            self._stack.append((path, self._serial))
            self._children.append(0)
            try:
                with _unchanged(m):
                    if "forward" in m.__dict__:
                        raise Untraceable("its forward is replaced on the instance")
                    output = forward(*args, **kwargs)
                self.opened.add(m)
                return output
            except Exception as error:
                self.obstacles[m] = _told(error)
                self._forget(before)
            finally:
                self._stack.pop()
                self._children.pop()
        proxy = self.create_proxy("call_module", path, args, kwargs)
        proxy.node.meta.update(slot=slot, module=m)
        return proxy

    def _slot(self, child: nn.Module) -> Slot | None:
        """Which of its places a Sequential is calling; it calls them in order."""
        parent = self.root.get_submodule(self._stack[-1][0]) if self._stack else self.root
        place = self._children[-1]
        self._children[-1] += 1
        if not isinstance(parent, nn.Sequential) or type(parent).forward is not _IN_ORDER:
            return None
        name = list(parent._modules)[place]
        return Slot(parent, name) if parent._modules[name] is child else None

    def _forget(self, length: int) -> None:
        for node in reversed(list(self.graph.nodes)[length:]):
            self.graph.erase_node(node)
        alive = set(self.graph.nodes)
        for name, proxy in list(self._proxies.items()):
            if proxy.node not in alive:
                del self._proxies[name]


_IN_ORDER = nn.Sequential.forward


class _NoNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Untraceable(_OTHER_TENSOR)


_OTHER_TENSOR = "it computes with a tensor that is no input, parameter or buffer"


def _state() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),  # checkpoints, offloading
        *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
    )


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Puts back what a pass changed in the module, and raises Untraceable if it did."""
    attributes, before = Attributes(module), random_states()
    try:
        yield
    finally:
        drew = set_random_states(before)
        changed = attributes.put_back()
    if drew or changed:
        raise Untraceable(changed or "it draws random numbers to choose what it runs")


def _told(error: Exception) -> str:
    if isinstance(error, Untraceable):
        return str(error)
    first, *_ = (*str(error).splitlines(), "")
    return f"torch.fx cannot trace it: {first or type(error).__name__}"
