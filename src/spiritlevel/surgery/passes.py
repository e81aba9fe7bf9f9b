"""Passes over batches through a lent model in eval mode, with batch norms told what to divide by.

No batch norm is ever in training mode here: as it is called, it is handed a mean and a variance in
the place of its running ones. So groups, corrections, noise and the refusal of a single value, in
which the kinds of batch norm differ in training, play no part, and neither does momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.lent.as_used import seeded_within
from spiritlevel.lent.feeding import Forward, drawn, run_batch, targets
from spiritlevel.lent.heard import channels_first, heard_calls, input_of
from spiritlevel.lent.pooled import Pooled, by_sample
from spiritlevel.lent.score import Metric, metric_of, output_of, score
from spiritlevel.surgery.reading import Reading
from spiritlevel.surgery.trial import takes

__all__ = ["Fed", "Passes", "Score"]

Hear = Callable[[str, nn.Module, Tensor], object]


class _Enough(BaseException):
    """Ends a pass whose rest does not matter; no `except Exception` of a model's is to have it."""


@dataclass(frozen=True)
class Fed:
    """What a batch norm was fed over all batches."""

    pooled: Pooled
    calls: int
    most: int
    """Calls in one pass, at most."""


@dataclass(frozen=True)
class Score:
    metric: Metric
    total: float
    samples: int


class Passes:
    """`norms` are those that are to be recalibrated, by path; the model is lent and in eval()."""

    def __init__(
        self,
        model: nn.Module,
        norms: Mapping[str, Any],
        unusual: set[str],
        batches: Iterable[Any],
        forward: Forward | None,
        buffers_back: Callable[[], None],
        rewind: Callable[[], None],
    ) -> None:
        """`unusual`: norms that are tried first; `rewind` puts back what the loader draws from."""
        self.model, self.forward = model, forward
        self.norms: dict[str, Any] = dict(norms)
        self.batches = batches
        self.unusual, self.buffers_back, self.rewind = unusual, buffers_back, rewind
        self.unlike: set[str] = set()
        """Those of them that do not take the statistics of what they are given; not measured."""
        self.count = 0
        """Batches of the last pass."""
        self.same = True
        """Whether the last whole pass has read what the first has."""
        self._first: Reading | None = None
        self._last = Reading()
        self._tried: dict[str, bool] = {}

    def fed(self, done: Mapping[str, Pooled], only: str | None = None) -> dict[str, Fed]:
        """By path, in the order in which they were first called; the statistics handed to them are
        those in `done`, else the batch's own (of a single value: of all values so far).

        A pass is ended behind `only`, which must be called once in it. Raises UsageError.
        """
        found: dict[str, Fed] = {}
        spoiled: list[str] = []
        calls: dict[str, int] = {}

        def hear(path: str, norm: nn.Module, x: Tensor) -> None:
            if path in done:
                _hand(norm, done[path].mean, done[path].unbiased)
                return
            x = channels_first(norm, x)
            part = Pooled.of_samples(*by_sample(x), x[0, 0].numel())
            if not bool((part.mean + part.var).isfinite().all()):
                spoiled.append(path)  # float64 holds the square of any float32
            calls[path] = calls.get(path, 0) + 1
            before = found.get(path)
            pooled = part if before is None else before.pooled.merged(part)
            most = max(calls[path], 0 if before is None else before.most)
            found[path] = Fed(pooled, 1 if before is None else before.calls + 1, most)
            handed = part if part.count > 1 else pooled
            _hand(norm, handed.mean, handed.var)
            if path == only:
                raise _Enough

        for _ in self._each(hear):
            calls.clear()
            if spoiled:
                raise UsageError(
                    f"got NaN or infinity in what {spoiled[0]!r} is fed by batch {self.count - 1} "
                    "(counted from 0); wanted finite inputs and weights. Nothing was changed"
                )
        if not self.same:
            raise UsageError(
                f"got other batches when they were read again: {self._last}, and at first "
                f"{self._first}; wanted the same in each pass, as a list gives, or a loader whose "
                "chances are those of torch, NumPy and Python"
            )
        return found

    def scored(self, done: Mapping[str, Pooled]) -> Score | None:
        """In eval mode; None where a batch has no target that fits the output."""

        def hear(path: str, norm: nn.Module, _x: Tensor) -> None:
            if path in done:
                _hand(norm, done[path].mean, done[path].unbiased)

        found: Score | None = None
        for batch, result in self._each(hear):
            target, output = targets(batch), output_of(result)
            if target is None or output is None or not output.dim():
                return None
            metric = metric_of(output, target)
            if metric is None or (found is not None and found.metric != metric):
                return None
            values = score(output, target)
            values = values[~values.isnan()]  # samples of which no class is given
            before = Score(metric, 0.0, 0) if found is None else found
            total = before.total + float(values.sum())
            found = Score(metric, total, before.samples + len(values))
        return found

    def _each(self, hear: Hear) -> Iterator[tuple[Any, Any]]:
        """Batch and result, the same data in each pass: the loader's chances start as they were."""

        def hear_call(path: str, norm: nn.Module, given: Any, named: Any) -> None:
            x = input_of(given, named)
            if x is not None and (path not in self.unusual or self._takes(path, given, named, x)):
                hear(path, norm, x)

        self.rewind()
        self.count, self._last = 0, Reading()
        for batch in drawn(self.batches):
            self._last.add(batch)
            result = None
            with seeded_within(self.model), heard_calls(self.norms, hear_call), suppress(_Enough):
                result = run_batch(self.model, batch, self.forward)
            self.buffers_back()
            self.count += 1
            yield batch, result
            self._refuse_changed()
        if self._first is None:
            self._first = self._last
        self.same = self._last.same(self._first)

    def _takes(self, path: str, given: Any, named: Any, x: Tensor) -> bool:
        """Tried at each call of the first pass; those after it read the same."""
        if self._first is None and path not in self.unlike:
            norm, first = self.norms[path], path not in self._tried
            moved = channels_first(norm, x)
            part = Pooled.of_samples(*by_sample(moved), moved[0, 0].numel())
            if first or part.count > 1:
                before = self._tried.get(path, True)
                self._tried[path] = before and takes(norm, given, named, x, part)
                if first and not self._tried[path]:
                    self.unlike.add(path)
        return path not in self.unlike

    def _refuse_changed(self) -> None:
        for path, taken in self._tried.items():
            if not taken and path not in self.unlike:
                raise UsageError(
                    f"got {path!r}, whose own forward takes other statistics than those of what "
                    f"it is given in batch {self.count - 1} (counted from 0), though not before; "
                    "have it left as it is: put it in eval(), in a model that is in train()"
                )


def _hand(norm: Any, mean: Tensor, var: Tensor) -> None:
    norm.running_mean.copy_(mean.view_as(norm.running_mean))
    norm.running_var.copy_(var.view_as(norm.running_var))
