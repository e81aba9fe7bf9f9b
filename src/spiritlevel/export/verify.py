"""A file run beside the model it was made of, on the example and on data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from spiritlevel.errors import ExportError, UsageError
from spiritlevel.export.compare import Comparison
from spiritlevel.export.example import Example, flat
from spiritlevel.export.report import ExportReport
from spiritlevel.export.runtimes import Runtime
from spiritlevel.kernels import backend
from spiritlevel.lent.feeding import Forward, Progress, drawn, run_batch, targets
from spiritlevel.lent.heard import removing

__all__ = ["Call", "calls_of", "outputs_of", "verified"]

_ROUNDS, _SECONDS = 30, 1.0
"""Of each, in turns, for the milliseconds; and after how long it is enough."""

Call = tuple[list[Tensor], list[Tensor]]
"""The inputs of a call of the model, in the order of its forward, and its outputs."""


def verified(
    runtime: Runtime,
    model: nn.Module,
    given: Example,
    batches: Iterable[Any] | None,
    forward: Forward | None,
    tell: Progress,
) -> ExportReport:
    """The file beside the model, on the example and on the batches, if there are any.

    A report without what only the export knows. Raises UsageError and ExportError.
    """
    tell("running the file", 0, 1)
    found = _on_example(runtime, model, given)
    if batches is not None:
        total = len(batches) if isinstance(batches, Sized) else 0
        found.append(
            _on_data(
                runtime, model, given, batches, forward, lambda n: tell("comparing", n, total or n)
            )
        )
    data = found[-1]
    rows = tuple(each.row() for each in found)
    right = all(row.ok for row in rows)
    ours, theirs = _milliseconds(runtime, model, given) if right else (0.0, 0.0)
    judged = bool(data.judged)
    return ExportReport(
        path="",
        format="",
        runtime=runtime.name,
        bytes=0,
        rows=rows,
        differs=tuple(data.differs) if batches is not None else (),
        samples=data.judged,
        accuracy_model=data.right_model / data.judged if judged else None,
        accuracy_file=data.right_file / data.judged if judged else None,
        ms_model=ours,
        ms_file=theirs,
        notes=tuple(getattr(runtime, "notes", ())),
    )


def _on_example(runtime: Runtime, model: nn.Module, given: Example) -> list[Comparison]:
    """At batch 1, and at another than the one that was followed by the exporter."""
    found = []
    for size in (1, given.batch + 1):
        each = given.of_batch(size)
        comparison = Comparison("example", runtime.precision)
        with _running(model) as calls:
            each.run(model)
        _compare(comparison, runtime, given, calls, None)
        found.append(comparison)
    return found


def outputs_of(model: nn.Module, given: Example) -> list[Tensor]:
    """What the model gives for the example. Raises UsageError where it is none of tensors."""
    with _running(model) as calls:
        given.run(model)
    return calls[0][1]


def _on_data(
    runtime: Runtime,
    model: nn.Module,
    given: Example,
    batches: Iterable[Any],
    forward: Forward | None,
    tell: Callable[[int], None],
) -> Comparison:
    """On all batches. Raises UsageError for batches that do not fit, or none."""
    comparison = Comparison("data", runtime.precision)
    for number, batch in enumerate(drawn(batches)):
        calls = calls_of(model, batch, forward)
        _compare(comparison, runtime, given, calls, targets(batch))
        tell(number + 1)
    if not comparison.samples:
        raise UsageError("got no batches; wanted an iterable of at least one")
    return comparison


def calls_of(model: nn.Module, batch: Any, forward: Forward | None) -> list[Call]:
    """What the model is given and gives for a batch. Raises UsageError."""
    with _running(model) as calls:
        run_batch(model, batch, forward)
    if not calls:
        raise UsageError(
            "got a forward= that does not call the model itself; wanted model(...) in it, since "
            "that is what the file holds"
        )
    return calls


def _compare(
    comparison: Comparison,
    runtime: Runtime,
    given: Example,
    calls: list[Call],
    target: Tensor | None,
) -> None:
    for inputs, outputs in calls:
        _refuse_others(inputs, given)
        try:
            found = runtime.run(inputs)
        except ExportError:
            raise
        except Exception as error:  # each runtime has errors of its own
            raise ExportError(
                f"got {type(error).__name__} from {runtime.name} for a batch of {len(inputs[0])}: "
                f"{' '.join(str(error).split())[:400]}. Wanted a file that takes any batch, which "
                "this model does not become"
            ) from error
        comparison.add(outputs, found, target if len(calls) == 1 else None)


def _refuse_others(inputs: list[Tensor], given: Example) -> None:
    """Raises UsageError for inputs that differ from the example by more than the batch."""
    ours, theirs = (
        [
            (tuple(t.shape)[batched:], t.dtype)
            for t, batched in zip(each, given.batched, strict=False)
        ]
        for each in (given.tensors, inputs)
    )
    if len(inputs) != len(given.tensors) or ours != theirs:
        told = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in inputs)
        raise UsageError(
            f"got data that give the model {told}, and an example of {given}; wanted the same but "
            "for the batch, since a file has one shape. Make the example of the data, or pass a "
            "forward= that calls the model as the example does"
        )


@contextmanager
def _running(model: nn.Module) -> Iterator[list[Call]]:
    """What goes in and comes out within, on torch's own kernels."""
    calls: list[Call] = []
    held: list[list[Tensor]] = []

    def begins(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = [each for each in flat(model, args, kwargs) if isinstance(each, Tensor)]
        held.append([each.clone() for each in inputs])
        # Copies here as there, for model and file may write to what they are given.
        return tree_map_only(Tensor, Tensor.clone, (args, kwargs))

    def ends(_: nn.Module, _args: Any, output: Any) -> None:
        outputs = [each.clone() for each in tree_leaves(output) if isinstance(each, Tensor)]
        if not outputs:
            raise UsageError(
                f"got a model that returns {type(output).__name__}, without a tensor that torch's "
                "pytree finds in it; wanted tensors, or tuples and dicts of them"
            )
        calls.append((held.pop(), outputs))

    hooks = [
        model.register_forward_pre_hook(begins, prepend=True, with_kwargs=True),
        model.register_forward_hook(ends),
    ]
    with removing(hooks), backend.use("aten"), torch.no_grad():
        yield calls


def _milliseconds(runtime: Runtime, model: nn.Module, given: Example) -> tuple[float, float]:
    """Median of a sample at batch 1: the model's, which is in eval, and the file's, in turns."""
    one = given.of_batch(1)
    runs: list[Callable[[Example], object]] = [
        lambda fed: model(*fed.args, **fed.kwargs),
        lambda fed: runtime.run(fed.tensors),
    ]
    taken: list[list[float]] = [[], []]
    end = time.perf_counter() + _SECONDS
    with backend.use("aten"), torch.no_grad():
        for each in runs * 2:
            each(_copy(one))
        while not taken[1] or (len(taken[1]) < _ROUNDS and time.perf_counter() < end):
            for run, times in zip(runs, taken, strict=True):
                fed = _copy(one)
                begun = time.perf_counter()
                run(fed)
                times.append(1000 * (time.perf_counter() - begun))
    return median(taken[0]), median(taken[1])


def _copy(given: Example) -> Example:
    """For the model may write to it."""
    return replace(given, **tree_map_only(Tensor, Tensor.clone, vars(given)))
