"""Which tensors of a graph may lie in the same memory, and which operations write into it."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from spiritlevel.kernels.activations import of_module
from spiritlevel.surgery.in_place import WRITING
from spiritlevel.surgery.tracer import layer

__all__ = ["bases", "writes_into", "written"]

_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.Linear,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
)
_FRESH_FUNCTIONS = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    torch.add,
    torch.cat,
    torch.mul,
    torch.sigmoid,
    F.relu,
    F.silu,
    F.gelu,
    F.conv2d,
    F.linear,
)
"""What gives a tensor in memory of its own."""


def writes_into(node: fx.Node, memory: set[fx.Node], root: nn.Module) -> bool:
    """Whether the node may write what lies in `memory`, which `bases` gave."""
    return any(bases(into, root) & memory for into in written(node, root))


def written(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """Nodes whose memory the node may write."""
    inputs = node.all_input_nodes
    if node.op not in ("call_module", "call_method", "call_function") or not inputs:
        return []
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if not layer(module):
            return inputs
        return inputs[:1] if getattr(module, "inplace", False) else []
    if node.target in WRITING:
        return inputs[:1]
    if "out" in node.kwargs:
        return inputs
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    flagged = node.kwargs.get("inplace") or True in [a for a in node.args if type(a) is bool]
    home = getattr(node.target, "__module__", None) or "torch"
    if node.op == "call_function" and not home.startswith(("torch", "_operator", "math")):
        return [] if home == "builtins" else inputs
    writes = name.endswith("_") and not name.endswith("__")
    return inputs[:1] if flagged or writes or name.startswith(("__i", "__set")) else []


def bases(node: fx.Node, root: nn.Module) -> set[fx.Node]:
    """Nodes whose memory the node's output may be; itself alone, where it is new for sure."""
    found, queue = set(), [node]
    while queue:
        node = queue.pop()
        if node in found:
            continue
        found.add(node)
        if not _fresh(node, root):
            queue += node.all_input_nodes
    return found


def _fresh(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if of_module(module) is not None:
            return not getattr(module, "inplace", False)
        return isinstance(module, _FRESH_MODULES)
    return node.target in _FRESH_FUNCTIONS and not written(node, root)
