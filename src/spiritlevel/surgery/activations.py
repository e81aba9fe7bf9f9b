"""Which activation a node of a graph is, of those that a batch norm can end in."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from spiritlevel.kernels.activations import Activation, of_module, with_options

__all__ = ["of_node"]

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
        act = with_options(name, given)
    x = given.get("input")
    return (x, act) if act is not None and isinstance(x, fx.Node) else None


def _arguments(name: str, node: fx.Node) -> dict[str, Any]:
    names = _ARGUMENTS.get(name, ("input", "inplace"))
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
