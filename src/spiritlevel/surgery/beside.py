"""Two models that should give the same in eval(), run one beside the other on an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from spiritlevel.kernels import backend
from spiritlevel.lent.heard import heard_outputs
from spiritlevel.lent.kept import kept
from spiritlevel.surgery.verify import run

__all__ = ["OUTPUT", "Given", "first_apart", "given", "widened"]

Given = dict[str, list[Tensor]]
"""What the modules at some paths give, in the order in which they are done, and the model last."""

OUTPUT = "the output"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Of the largest value; 0.02 for other types."""
TIMES = 8.0
"""How many times the rounding of the first model, where that is more, as float64 shows it."""


def given(model: nn.Module, example: Any, paths: Iterable[str] = ()) -> Given:
    """On torch's kernels; the model and the random states are as they were."""
    modules = {path: model.get_submodule(path) for path in paths}
    with kept(model), backend.use("aten"), heard_outputs(modules) as found:
        leaves = tree_leaves(run(model, example))
        found[OUTPUT] = [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]
    return found


def widened(example: Any) -> Any:
    """Its floating-point tensors in float64."""
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, example)


def first_apart(
    before: Given, after: Given, truth: Given | None = None, *, anywhere: bool = False
) -> str | None:
    """The first that is not the same but for roundings, where the outputs are not, or `anywhere`.

    `truth` is what the first model gives in float64.
    """
    if anywhere:
        return next((name for name in after if _apart(name, before, after, truth)), None)
    if _apart(OUTPUT, before, after, truth):
        return next(name for name in after if _apart(name, before, after, truth))
    return None


def _apart(
    name: str, before: Given, after: Given, truth: Mapping[str, list[Tensor]] | None
) -> bool:
    old, new = before.get(name, []), after.get(name, [])
    exact: list[Any] = [None] * len(old) if truth is None else truth.get(name, [])
    if not len(old) == len(new) == len(exact):
        return True
    return any(map(_differ, old, new, exact))


def _differ(old: Tensor, new: Tensor, exact: Tensor | None) -> bool:
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return True
    if not (old.is_floating_point() or old.is_complex()):
        # A choice may hang on a rounding: it is held against float64, where there is hardly one.
        return exact is None and not torch.equal(old, new)
    wanted = old if exact is None else exact
    tolerance = TOLERANCE.get(old.dtype, 2e-2)
    new, old = new.to(wanted.dtype), old.to(wanted.dtype)
    if not torch.equal(new.isfinite(), old.isfinite()):
        return True
    finite = old.isfinite() & wanted.isfinite()
    if not bool(finite.any()):
        return False
    new, old, wanted = new[finite], old[finite], wanted[finite]
    allowed = tolerance * _most(wanted)
    return _most(new - wanted) > max(allowed, TIMES * _most(old - wanted))


def _most(values: Tensor) -> float:
    return float(values.abs().max())
