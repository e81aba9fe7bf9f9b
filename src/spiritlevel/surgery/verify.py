"""Whether a model computes what it computed before, seen on an example.

Both run on torch's own kernels, which take the same sums in the same order. So what differs is no
rounding, however much a batch norm of few values makes of that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.lent.heard import heard_outputs, removing
from spiritlevel.lent.kept import kept
from spiritlevel.surgery.eligible import FUSED

__all__ = ["Numbers", "differs", "numbers", "run", "unlike"]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Of the largest value, or of 0.001 where all are less; other types have 1e-2. For devices whose
convolutions are not the same twice."""

Numbers = dict[str, list[Tensor]]


def run(model: nn.Module, example: Any) -> Any:
    """The model's output for a tensor, a tuple of inputs, or a dict of inputs by name."""
    example = tree_map_only(Tensor, Tensor.clone, example)
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def numbers(model: nn.Module, example: Any, *, layers: bool = False) -> Numbers:
    """What the model gives in training and in eval, and its buffers after each.

    With `layers` what each module gives, too, as they are done. Raises UsageError.
    """
    if any(is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        raise UsageError("got a model with lazy layers and an example; run the model once before")
    found: Numbers = {}
    for training in (True, False):
        with kept(model), backend.use("aten"):
            for module in model.modules():
                module.training = training
            mode = "train" if training else "eval"
            listened = {path: m for path, m in model.named_modules() if path} if layers else {}
            with heard_outputs(listened) as heard:
                outputs = tree_leaves(run(model, example))
            found |= {f"{path} in {mode}()": tensors for path, tensors in heard.items()}
            found[f"the output in {mode}()"] = [t for t in outputs if isinstance(t, Tensor)]
            for name, buffer in model.named_buffers():
                found[f"the buffer {name} after {mode}()"] = [buffer.clone()]
    return found


def unlike(model: nn.Module, example: Any) -> set[nn.Module]:
    """Fused batch norms that are given a residual of another shape than their input."""
    found: set[nn.Module] = set()

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs) == 2 and getattr(inputs[1], "shape", None) != inputs[0].shape:
            found.add(module)

    fused = [module for module in model.modules() if type(module) in FUSED.values()]
    hooks = [module.register_forward_pre_hook(look) for module in fused]
    with removing(hooks), kept(model), backend.use("aten"):
        run(model, example)
    return found


def differs(before: Numbers, after: Numbers) -> str | None:
    """The first of `after` that is not, within rounding, what it was; only what both have."""
    for name, values in after.items():
        expected = before.get(name)
        if expected is not None and not _close(values, expected):
            return name
    return None


def _close(values: list[Tensor], expected: list[Tensor]) -> bool:
    return len(values) == len(expected) and all(map(_alike, values, expected))


def _alike(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    if not (a.is_floating_point() and a.numel()):
        return torch.equal(a, b)
    scale = max(b.nan_to_num(0.0, 0.0, 0.0).abs().amax().item(), 1e-3)
    tolerance = TOLERANCE.get(a.dtype, 1e-2) * scale
    return torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
