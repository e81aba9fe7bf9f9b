"""Which activation a module or a node of a graph is, of those that a batch norm can end in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from spiritlevel.kernels.activations import Activation
from spiritlevel.surgery.tracer import hooked

__all__ = ["module_of", "of_module", "of_node", "why_not"]

_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.GELU: "gelu",
    nn.Hardtanh: "hardtanh",
}
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.gelu: "gelu",
    F.hardtanh: "hardtanh",
    F.hardtanh_: "hardtanh",
}
_METHODS = {"relu": "relu", "relu_": "relu"}
_ARGUMENTS = {
    "leaky_relu": ("input", "negative_slope", "inplace"),
    "gelu": ("input", "approximate"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
}
"""Of torch's function, where they are not just an input and `inplace`."""


def of_module(module: nn.Module) -> Activation | None:
    """The activation that the module is, by its exact class; None for all others."""
    name = _MODULES.get(type(module))
    return None if name is None else _with_options(name, vars(module))


def module_of(act: Activation) -> nn.Module:
    """torch's own layer of an activation."""
    if act.name == "identity":
        return nn.Identity()
    if act.name == "leaky_relu":
        return nn.LeakyReLU(act.slope)
    kinds = {name: kind for kind, name in _MODULES.items() if kind is not nn.Hardtanh}
    return kinds[act.name]()


def why_not(module: nn.Module) -> str | None:
    """Why an activation module has to stay a call of its own; None where it has not to."""
    if hooked(module):
        return "is hooked"
    return "has its forward replaced on the instance" if "forward" in vars(module) else None


def of_node(node: fx.Node, root: nn.Module) -> tuple[fx.Node, Activation] | None:
    """The input and the kind of a node that is an activation; None for all others."""
    if node.op == "call_module":
        act = of_module(root.get_submodule(str(node.target)))
        given = _arguments("", node)
    else:
        table = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
        name = table.get(node.target)
        if name is None:
            return None
        given = _arguments(name, node)
        act = _with_options(name, given)
    x = given.get("input")
    return (x, act) if act is not None and isinstance(x, fx.Node) else None


def _arguments(name: str, node: fx.Node) -> dict[str, Any]:
    names = _ARGUMENTS.get(name, ("input", "inplace"))
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _with_options(name: str, options: Mapping[str, Any]) -> Activation | None:
    if name == "leaky_relu":
        slope = options.get("negative_slope", 0.01)
        return Activation(name, float(slope)) if isinstance(slope, int | float) else None
    if name == "gelu":
        return Activation(name) if options.get("approximate", "none") == "none" else None
    if name == "hardtanh":
        ends = (options.get("min_val", -1.0), options.get("max_val", 1.0))
        return Activation("relu6") if ends == (0, 6) else None
    return Activation(name)
