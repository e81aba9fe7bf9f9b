"""Two models on the same batches, in eval mode: whether they give the same, and where they part.

Of each module's output only a sample is kept, so memory does not grow with the batch. A module
counts as changed where its output differs from the other model's at the same path and is no later
output of that either: a convolution with its batch norm folded in gives what the norm gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spiritlevel.errors import UsageError
from spiritlevel.lent.as_used import borrowed, seeded
from spiritlevel.lent.feeding import Forward, Taken, run_batch, take

__all__ = ["MOST_BATCHES", "Comparison", "compare", "unwrapped"]

MOST_BATCHES = 4
"""What is wrong with a conversion is wrong for every batch; more only cost time."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Of the largest value of an output. Sums in another order move a deep network in float32 by 1e-6,
a wrong fold in one layer of GhostNet by 6e-4 at the least that was seen."""
COARSE = 5e-2
"""For half precision, whose last digit is 0.1 % to 0.8 %, and integers."""
TF32 = 1e-2
"""For float32 on an accelerator, whose convolutions may round their inputs to 11 binary digits."""
SAMPLE = 8192
"""Values that are kept of each module's output: 32 KiB."""


@dataclass(frozen=True)
class Comparison:
    relative: float
    """The largest difference of outputs, as a share of the reference's largest value; infinite
    where shapes differ or only one is finite."""
    tolerance: float
    """What rounding may do at this precision."""
    agreement: float | None
    """Share of samples with the same largest logit; None where no output looks like logits."""
    samples: int
    """Behind `agreement`."""
    first: str | None
    """The model's first module whose output differs, in the order they are done; None where all
    that both have agree."""
    at_first: float
    """The difference there, as `relative` is."""
    shapes: tuple[str, str] | None
    """What the model and the reference give, where that differs."""

    @property
    def agrees(self) -> bool:
        return self.relative <= self.tolerance


@dataclass(frozen=True)
class _Digest:
    """What is kept of a tensor."""

    shape: torch.Size
    values: Tensor
    largest: float
    mean: float


def compare(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Any] | Taken,
    *,
    forward: Forward | None = None,
) -> Comparison:
    """Run both on the first batches; both are left as they were found.

    Each starts from the same random state. Raises UsageError where one of them cannot be run.
    """
    taken = take(batches, MOST_BATCHES).batches[:MOST_BATCHES]
    expected = _outputs(reference, taken, forward, "the reference")
    given = _outputs(model, taken, forward, "the model")
    tolerance = _tolerance(model, reference, given)
    shapes = _shapes(given), _shapes(expected)
    if shapes[0] != shapes[1]:
        both = shapes[0][0], shapes[1][0]
        return Comparison(float("inf"), tolerance, None, 0, None, 0.0, both)
    apart = [
        max((_apart(a, b) for a, b in zip(mine, theirs, strict=True)), default=0.0)
        for mine, theirs in zip(given, expected, strict=True)
    ]
    agreement, samples = _agreement(given, expected)
    relative = max(apart, default=0.0)
    first, there = None, 0.0
    if relative > tolerance:
        batch = taken[apart.index(relative)]
        first, there = _parting(model, reference, batch, forward, tolerance)
    return Comparison(relative, tolerance, agreement, samples, first, there, None)


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The model within DataParallel, torch.compile, an averaged model, and the path's beginning."""
    prefix = ""
    while True:
        children = dict(model.named_children())
        (name, *others) = children or [""]
        if others or name not in ("module", "_orig_mod") or model._parameters:
            return model, prefix
        model, prefix = children[name], f"{prefix}{name}."


# ---- outputs -------------------------------------------------------------------------------------


def _outputs(
    model: nn.Module, batches: tuple[Any, ...], forward: Forward | None, called: str
) -> list[list[Tensor]]:
    """The tensors that the model gives for each batch, on the CPU."""
    compiled = any(hasattr(module, "_orig_mod") for module in model.modules())
    with _evaluating(model, called), ExitStack() as stack:
        if compiled:  # what was compiled is what is compared
            stack.enter_context(torch.compiler.set_stance("default"))
        found = []
        for batch in batches:
            outputs = tree_leaves(run_batch(model, batch, forward))
            found.append([t.detach().cpu().clone() for t in outputs if isinstance(t, Tensor)])
        return found


@contextmanager
def _evaluating(model: nn.Module, called: str) -> Iterator[None]:
    try:
        with borrowed(model), torch.no_grad():
            for module in model.modules():
                module.training = False
            seeded(model)
            yield
    except UsageError as error:
        raise UsageError(f"{called} could not be compared: {error}") from error


def _shapes(outputs: list[list[Tensor]]) -> list[str]:
    return [", ".join(str(tuple(t.shape)) for t in each) or "no tensor" for each in outputs]


def _tolerance(model: nn.Module, reference: nn.Module, outputs: list[list[Tensor]]) -> float:
    """For the coarsest type of what they hold and give."""
    held = [
        t
        for each in (model, reference)
        for t in (*each.parameters(), *each.buffers())
        if t.is_floating_point()
    ]
    given = [t for each in outputs for t in each if t.is_floating_point()]
    found = [TOLERANCE.get(t.dtype, COARSE) for t in (*held, *given)]
    if any(t.device.type != "cpu" and t.dtype == torch.float32 for t in held):
        found.append(TF32)
    return max(found, default=TOLERANCE[torch.float32])


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference as a share of b's largest value."""
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or b.is_floating_point()) or a.is_complex() or b.is_complex():
        return 0.0 if torch.equal(a, b) else float("inf")
    a, b = a.double(), b.double()
    finite = a.isfinite()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool((finite != b.isfinite()).any()) or not bool((same | finite).all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    largest = float(b[finite].abs().max())
    difference = float((a[finite] - b[finite]).abs().max())
    return difference / largest if largest else float("inf") if difference else 0.0


def _agreement(given: list[list[Tensor]], expected: list[list[Tensor]]) -> tuple[float | None, int]:
    """Of the first output of each batch, if it is (N, classes)."""
    same = samples = 0
    for mine, theirs in zip(given, expected, strict=True):
        a, b = next(zip(mine, theirs, strict=True), (None, None))
        if a is None or b is None or a.dim() != 2 or a.shape[1] < 2 or not a.is_floating_point():
            return None, 0
        same += int((a.argmax(1) == b.argmax(1)).sum())
        samples += len(a)
    return (same / samples, samples) if samples else (None, 0)


# ---- where they part -----------------------------------------------------------------------------


def _parting(
    model: nn.Module, reference: nn.Module, batch: Any, forward: Forward | None, tolerance: float
) -> tuple[str | None, float]:
    """The first changed module of the model, and by how much."""
    theirs = _passes(reference, batch, forward, "the reference")
    mine = _passes(model, batch, forward, "the model")
    places: dict[str, list[int]] = {}
    for place, (path, _) in enumerate(theirs):
        places.setdefault(path, []).append(place)
    calls = dict.fromkeys(places, 0)
    for path, digests in mine:
        if path not in places or calls[path] >= len(places[path]):
            continue
        place = places[path][calls[path]]
        calls[path] += 1
        apart = _between(digests, theirs[place][1])
        later = (each for _, each in theirs[place + 1 :])
        if apart > tolerance and all(_between(digests, each) > tolerance for each in later):
            return unwrapped(model)[1] + path, apart
    return None, 0.0


def _passes(
    model: nn.Module, batch: Any, forward: Forward | None, called: str
) -> list[tuple[str, list[_Digest]]]:
    """By path in the bare model, what each module gave, in the order in which they were done."""
    found: list[tuple[str, list[_Digest]]] = []

    def hear(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
            found.append((path, [_digest(t) for t in tensors]))

        return hook

    bare, _ = unwrapped(model)
    with _evaluating(model, called), ExitStack() as hooks:
        for path, module in bare.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(hear(path)).remove)
        run_batch(model, batch, forward)
    return found


def _digest(tensor: Tensor) -> _Digest:
    flat = tensor.detach().flatten()
    if not flat.is_floating_point() or not flat.numel():
        return _Digest(tensor.shape, flat[:SAMPLE].cpu().clone(), 0.0, 0.0)
    step = (len(flat) // SAMPLE) | 1  # odd, so that it goes through all of a power of two
    values = flat[::step].float().cpu().clone()
    return _Digest(tensor.shape, values, float(flat.abs().max()), float(flat.double().mean()))


def _between(mine: list[_Digest], theirs: list[_Digest]) -> float:
    if [a.shape for a in mine] != [b.shape for b in theirs]:
        return float("inf")
    return max((_between_two(a, b) for a, b in zip(mine, theirs, strict=True)), default=0.0)


def _between_two(a: _Digest, b: _Digest) -> float:
    sampled = _apart(a.values, b.values)
    if not b.largest or not a.values.is_floating_point():
        return sampled if a.largest == b.largest else float("inf")
    # The sample's largest value may be less than the tensor's.
    largest = float(b.values.abs().max()) if b.values.numel() else 0.0
    scale = largest / b.largest
    return max(sampled * scale if scale else sampled, abs(a.mean - b.mean) / b.largest)
