"""Whether a sample's output in eval mode depends on the others in its batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from spiritlevel.errors import UsageError
from spiritlevel.lent.as_used import seeded
from spiritlevel.lent.feeding import Forward, run_batch, size_of

__all__ = ["Mates", "among_others"]


@dataclass(frozen=True)
class Mates:
    """What becomes of the first half of a batch when the second half is replaced by copies of it.

    Both batches are of one size, so that kernels take their sums alike.
    """

    change: float
    """The largest change of an output, as a share of the largest output."""
    rounding: float
    """What its type rounds to, as a share of the largest output, a thousand times."""
    samples: int
    """Compared."""
    flipped: float | None
    """The share of samples whose largest output is another; None where there is only one output."""
    module: str
    """The first module, as they end, whose output changed; "" where none shows it."""

    @property
    def depends(self) -> bool:
        return self.change > self.rounding


def among_others(
    model: nn.Module,
    batch: Any,
    forward: Forward | None = None,
    put_back: Callable[[], None] = lambda: None,
) -> Mates | None:
    """As the model stands, with one seed; None where samples cannot be told apart.

    Nor can they where the same batch has another output the second time. `put_back` is called
    after each pass. To be called within `borrowed`.
    """
    size = size_of(batch)
    half = size // 2
    if half < 1:
        return None
    rows = torch.arange(size)
    rows[half : 2 * half] = torch.arange(half)
    rows[2 * half :] = 0
    other = tree_map_only(Tensor, lambda t: _replaced(t, rows), _unwrapped(batch))
    try:
        before, told_before = _run(model, batch, forward, size)
        put_back()
        after, told_after = _run(model, other, forward, size)
        put_back()
        again, _ = _run(model, batch, forward, size) if after is not None else (None, [])
    except UsageError:
        return None  # it refuses batches that another pass, of the user's own, will tell of
    finally:
        put_back()
    if before is None or after is None or again is None:
        return None
    if not before.shape == after.shape == again.shape:
        return None
    a, b, same = (each[:half].double() for each in (before, after, again))
    if not bool((a + b + same).isfinite().all()):
        return None
    scale = max(float(a.abs().max()), 1e-30)
    change = float((a - b).abs().max()) / scale
    rounding = 1000 * torch.finfo(before.dtype).eps
    if before.dtype in (torch.float16, torch.bfloat16):
        rounding = 16 * torch.finfo(before.dtype).eps
    if float((a - same).abs().max()) > rounding * scale:
        return None
    flipped = None
    if a.dim() > 1 and a.shape[1] > 1:
        flipped = float((a.argmax(1) != b.argmax(1)).double().mean())
    depends = change > rounding
    module = _first_change(told_before, told_after, half, rounding) if depends else ""
    return Mates(change, rounding, half, flipped, module)


def _unwrapped(batch: Any) -> Any:
    return dict(batch) if hasattr(batch, "keys") else batch


def _replaced(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor[rows.to(tensor.device)] if tensor.dim() and len(tensor) == len(rows) else tensor


_Told = list[tuple[str, Tensor]]


def _run(
    model: nn.Module, batch: Any, forward: Forward | None, size: int
) -> tuple[Tensor | None, _Told]:
    """The output, and of each module, as it ends, two sums over each sample's output."""
    told: _Told = []

    def hook_of(path: str) -> Any:
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:
            found = _by_rows(output, size)
            if found is not None:
                flat = found.detach().reshape(size, -1).double()
                told.append((path, torch.stack([flat.mean(1), flat.square().mean(1).sqrt()])))

        return hook

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # they take no hooks
                hooks.callback(module.register_forward_hook(hook_of(path)).remove)
        seeded(model)
        output = run_batch(model, batch, forward)
    return _by_rows(output, size), told


def _by_rows(output: Any, size: int) -> Tensor | None:
    output = getattr(output, "logits", output)
    return next(
        (
            t
            for t in tree_leaves(_unwrapped(output))
            if isinstance(t, Tensor) and t.is_floating_point() and t.dim() and len(t) == size
        ),
        None,
    )


def _first_change(before: _Told, after: _Told, half: int, rounding: float) -> str:
    for (path, a), (other, b) in zip(before, after, strict=False):
        a, b = a[:, :half], b[:, :half]
        if path != other or not bool((a + b).isfinite().all()):
            return ""
        if float((a - b).abs().max()) > rounding * max(float(a.abs().max()), 1e-30):
            return path
    return ""
