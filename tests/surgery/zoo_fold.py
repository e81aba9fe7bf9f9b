"""One architecture of somebody else's, folded, and compared with itself on another input.

In float64, in eval(). What fold has seen is its example; what is compared here it has not.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from zoo_check import Architecture, _distance, _double, _forward, _uneven

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.surgery.in_eval import is_norm

__all__ = ["TOLERANCE", "Folded", "check"]

TOLERANCE = 1e-9
"""Of the largest value."""


@dataclass
class Folded:
    """What became of one architecture; `left` are batch norms by why they stay."""

    package: str
    name: str
    norms: int = 0
    merged: int = 0
    left: dict[str, int] = field(default_factory=dict)
    difference: float = 0.0
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.difference > TOLERANCE:
            return "wrong"
        if self.why:
            return "refused"
        return "right" if not self.left else "right, some left"


def check(architecture: Architecture) -> Folded:
    row = Folded(architecture.package, architecture.name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages' own code
        model, example = architecture.build()
        model, example = _uneven(model.double()), _double(example)
        row.norms = sum(map(is_norm, model.modules()))
        before = copy.deepcopy(model)
        try:
            folded = sl.fold(model, example)
        except UsageError as error:
            row.why = str(error)
            return row
        other = tree_map_only(Tensor, _another, example)
        expected = _forward(before, other, training=False)
        row.difference = _distance(_forward(folded, other, training=False), expected)[0]
    row.left, stay = _left(folded)
    row.merged = row.norms - stay
    return row


def _another(tensor: Tensor) -> Tensor:
    return torch.randn_like(tensor) if tensor.is_floating_point() else tensor


def _left(folded: nn.Module) -> tuple[dict[str, int], int]:
    """Why norms stay, without the names of layers, and how many do."""
    norms = {path for path, module in folded.named_modules() if is_norm(module)}
    found: Counter[str] = Counter()
    named: set[str] = set()
    log: Any = folded.spiritlevel_log
    for entry in log:
        if entry.action == "left" and norms.issuperset(entry.paths) and entry.paths:
            found[_general(entry.why)] += 1
            named.update(entry.paths)
    silent = norms - named
    if silent:
        raise AssertionError(f"{sorted(silent)[0]} stays, and nothing is said of it")
    return dict(found), len(norms)


def _general(why: str) -> str:
    words = ["a layer" if "." in word.strip("():,;") else word for word in why.split()]
    return " ".join(words)
