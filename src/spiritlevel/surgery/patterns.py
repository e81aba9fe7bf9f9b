"""Batch norm -> activation and batch norm -> add -> activation in a graph, and their merging.

A pattern is taken only where the merged node computes the same: nothing else reads what is no
longer made, and nothing that the merged node reads is written between the batch norm's old place
and its new one, that of the sum.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from spiritlevel.kernels.activations import Activation
from spiritlevel.surgery import activations
from spiritlevel.surgery.in_place import iadd
from spiritlevel.surgery.memory import bases, writes_into, written
from spiritlevel.surgery.tracer import touched

__all__ = ["Pattern", "match", "merge"]

IsNorm = Callable[[nn.Module], bool]


class Pattern(NamedTuple):
    """What is merged into one batch norm; `add` and `activated` are None where there is none."""

    norm: fx.Node
    add: fx.Node | None
    activated: fx.Node | None
    act: Activation

    def nodes(self) -> tuple[fx.Node, ...]:
        return tuple(n for n in (self.norm, self.add, self.activated) if n is not None)

    def __str__(self) -> str:
        parts = ["+ add"] * (self.add is not None)
        parts += [f"-> {self.act}"] * (self.activated is not None)
        return " ".join(("batch norm", *parts))


def match(norm: fx.Node, root: nn.Module, is_norm: IsNorm) -> Pattern | str:
    """The pattern that begins at the call of a batch norm, or why there is none.

    `is_norm` tells which modules are batch norms that may be merged, too.
    """
    if len(norm.args) != 1 or norm.kwargs or not isinstance(norm.args[0], fx.Node):
        return "is called with other arguments than one input"
    user = _only_reader(norm)
    if user is None:
        return "its output goes to no place or to several"
    if (found := _activation(norm, user, root)) is not None:
        return found if isinstance(found, str) else Pattern(norm, None, user, found)
    if not _is_sum(user):
        return "neither an activation nor a sum follows"
    other = _other(user, norm)
    if other is None:
        return "what is added to it is no tensor of the graph"
    if (why := _why_not_summed(norm, user, other, root)) is not None:
        return why
    if _is_call(other, root, is_norm) and _preferred(other, norm, user, root):
        return "its sum is merged into the batch norm that it is added to"
    then = _only_reader(user)
    act = None if then is None else _activation(user, then, root)
    if not isinstance(act, Activation) or _rewritten_later(act, other, user, root):
        return Pattern(norm, user, None, Activation("identity"))
    return Pattern(norm, user, then, act)


def merge(pattern: Pattern, graph: fx.Graph) -> None:
    """Make the pattern one node of the graph, where its sum was."""
    norm, add, activated, _ = pattern
    if add is not None:
        with graph.inserting_before(add):
            merged = graph.call_module(str(norm.target), (norm.args[0], _other(add, norm)))
        merged.meta = dict(norm.meta)
        add.replace_all_uses_with(merged)
        graph.erase_node(add)
        graph.erase_node(norm)
        norm = merged
    if activated is not None:
        activated.replace_all_uses_with(norm)
        graph.erase_node(activated)


def _activation(x: fx.Node, node: fx.Node, root: nn.Module) -> Activation | str | None:
    """The activation that `node` applies to `x`, or why it has to stay; None if it is none."""
    found = activations.of_node(node, root)
    if found is None or found[0] is not x:
        return None
    if node.op == "call_module":
        why = touched(root.get_submodule(str(node.target)))
        if why is not None:
            return f"{node.target}, which follows, {why}"
    return found[1]


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads it, once."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    reads: list[fx.Node] = []
    fx.node.map_arg((user.args, dict(user.kwargs)), reads.append)
    return user if reads.count(node) == 1 else None


_SUMS: tuple[Any, ...] = (operator.add, iadd, torch.add)


def _is_sum(node: fx.Node) -> bool:
    plain = set(node.kwargs) <= {"alpha", "other"} and node.kwargs.get("alpha", 1) in (1,)
    function = node.op == "call_function" and node.target in _SUMS
    method = node.op == "call_method" and node.target in ("add", "add_", "__add__", "__iadd__")
    return plain and (function or method) and len(_summands(node)) == 2


def _summands(node: fx.Node) -> list[Any]:
    return [*node.args, *(v for k, v in node.kwargs.items() if k == "other")]


def _other(add: fx.Node, norm: fx.Node) -> fx.Node | None:
    """What is added to the batch norm's output, where it may be taken for a tensor like it."""
    (other,) = (each for each in _summands(add) if each is not norm)
    if not isinstance(other, fx.Node) or other.op == "get_attr" or _number(other):
        return None
    return other


_NUMBERS: tuple[Any, ...] = (
    *("size", "dim", "ndimension", "numel", "nelement", "item", "stride", "element_size"),
    *(getattr, len, torch.numel, math.prod, math.sqrt),
)
_ARITHMETIC: tuple[Any, ...] = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv),
    *(operator.mod, operator.pow, operator.neg, operator.getitem),
)


def _number(node: fx.Node) -> bool:
    """Whether it is one of a tensor's sizes or other attributes, or is computed of such."""
    inputs = node.all_input_nodes
    if node.target in _NUMBERS:
        return True
    return node.target in _ARITHMETIC and bool(inputs) and all(map(_number, inputs))


def _preferred(other: fx.Node, norm: fx.Node, add: fx.Node, root: nn.Module) -> bool:
    """Of two batch norms that are summed, the one whose call lies less deep, then the later."""
    if _only_reader(other) is None or len(other.args) != 1 or other.kwargs:
        return False
    if _why_not_summed(other, add, norm, root) is not None:
        return False
    depth, others = (len(node.meta["stack"]) for node in (norm, other))
    return others < depth or (others == depth and norm < other)


def _why_not_summed(norm: fx.Node, add: fx.Node, other: fx.Node, root: nn.Module) -> str | None:
    """Why the batch norm cannot run where the sum does."""
    elsewhere = bases(other, root) != {other} or len(other.users) > 1
    if other in written(add, root) and elsewhere:
        return "the sum is written into a tensor that is used elsewhere"
    (x,) = norm.all_input_nodes
    read = bases(x, root)
    node = norm.next
    while node is not add:
        if writes_into(node, read, root):
            return "its input may be written before the sum"
        if any(_of_norm(base, norm) for x in node.all_input_nodes for base in bases(x, root)):
            return "what it holds is used before the sum"
        node = node.next
    return None


def _of_norm(node: fx.Node, norm: fx.Node) -> bool:
    """Whether it is a parameter or a buffer of the batch norm."""
    return node.op == "get_attr" and str(node.target).startswith(f"{norm.target}.")


def _rewritten_later(act: Activation, other: fx.Node, add: fx.Node, root: nn.Module) -> bool:
    """Whether a backward pass would miss what was added, written after it was saved."""
    if act.name == "relu":  # saves its output
        return False
    kept, node = bases(other, root), add.next
    while node.op != "output":
        if writes_into(node, kept, root):
            return True
        node = node.next
    return False


def _is_call(node: fx.Node, root: nn.Module, of: IsNorm) -> bool:
    return node.op == "call_module" and of(root.get_submodule(str(node.target)))
