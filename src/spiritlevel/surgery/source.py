"""What a class's source tells of its methods and attributes, without running any of it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import FunctionType
from typing import Any

from torch import nn

from spiritlevel.surgery.hidden import modules_in

__all__ = [
    "EVERY",
    "HARMLESS",
    "called",
    "first_argument",
    "function_of",
    "is_data",
    "is_torchs",
    "keeps_to_itself",
    "methods_of",
    "runs_as_written",
]

EVERY = (
    *("children", "modules", "named_children", "named_modules", "_modules", "get_submodule"),
    *("__dict__", "__getattr__", "__getattribute__", "apply"),
)
"""Attributes of nn.Module by which any part may be reached."""
HARMLESS = (
    *("training", "forward", "__call__", "__class__", "parameters", "named_parameters", "buffers"),
    *("named_buffers", "register_buffer", "register_parameter", "state_dict", "zero_grad", "to"),
    *("_parameters", "_buffers", "_get_name", "extra_repr", "requires_grad_", "train", "eval"),
)
"""Attributes of nn.Module that give no child."""


def methods_of(kind: type) -> dict[str, list[ast.FunctionDef]]:
    """By name, those of all classes it is made of, but for torch's."""
    found: dict[str, list[ast.FunctionDef]] = {}
    for each in kind.__mro__:
        if each is not object and not each.__module__.startswith(("torch.nn.", "typing")):
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(each)))):
                if isinstance(node, ast.FunctionDef):
                    found.setdefault(node.name, []).append(node)
    return found


def keeps_to_itself(child: nn.Module, name: str) -> bool:
    """Whether an attribute is data, or reads no more than data: it may call the whole child."""
    if name in child._modules or name in EVERY:
        return False
    if name in vars(child):
        return not any(modules_in(vars(child)[name]))
    value = inspect.getattr_static(type(child), name, None)
    function = function_of(value)
    if function is None:
        return is_data(value)
    if function.__module__.startswith("torch.nn."):
        return name in HARMLESS
    try:
        (method,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return False
    if not isinstance(method, ast.FunctionDef) or method.name != name:
        return False
    me = first_argument(method)
    parent = {c: p for p in ast.walk(method) for c in ast.iter_child_nodes(p)}
    return all(
        _only_data(child, parent[node], node)
        for node in ast.walk(method)
        if isinstance(node, ast.Name) and node.id == me
    )


def _only_data(child: nn.Module, up: ast.AST, me: ast.AST) -> bool:
    if isinstance(up, ast.Call):
        return up.func is me
    if not isinstance(up, ast.Attribute) or up.attr in child._modules or up.attr in EVERY:
        return False
    if up.attr in vars(child):
        return not any(modules_in(vars(child)[up.attr]))
    if is_torchs(type(child), up.attr):
        return up.attr in HARMLESS
    return is_data(inspect.getattr_static(type(child), up.attr, None))


def is_torchs(kind: type, name: str) -> bool:
    """Whether the attribute is nn.Module's own."""
    missing = object()
    own = inspect.getattr_static(nn.Module, name, missing)
    return inspect.getattr_static(kind, name, None) is own


def is_data(value: Any) -> bool:
    """Whether an attribute of a class is no more than it shows: nothing runs when it is read."""
    return not callable(value) and not hasattr(type(value), "__get__")


def function_of(value: Any) -> FunctionType | None:
    """That of a method, a property or the like."""
    for name in ("fget", "__func__", "func"):
        value = getattr(value, name, value) if not isinstance(value, FunctionType) else value
    return value if isinstance(value, FunctionType) else None


def runs_as_written(module: nn.Module) -> bool:
    """Whether a call runs `forward` of the class, and attributes are found where they are held."""
    kind = type(module)
    own = ("__call__", "__getattr__", "__getattribute__")
    return all(is_torchs(kind, name) for name in own) and "forward" not in vars(module)


def first_argument(method: ast.FunctionDef) -> str:
    """What a method calls its module."""
    if any(getattr(each, "id", "") == "staticmethod" for each in method.decorator_list):
        return ""
    return method.args.args[0].arg if method.args.args else ""


def called(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    return getattr(node.func, "id", getattr(node.func, "attr", None))
