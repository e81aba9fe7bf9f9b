"""What a model's norms see on the user's batches, in training and in eval mode.

In training each batch norm takes the statistics of the batch, dropout is on, and each batch finds
the model as it is: what a pass writes is put back before the next. The model is left undisturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spiritlevel.lent.as_used import active_dropouts, borrowed, frozen_norms, put_in, seeded
from spiritlevel.lent.feeding import (
    Forward,
    Progress,
    SingleValue,
    Taken,
    run_batch,
    size_of,
    take,
    targets,
)
from spiritlevel.lent.heard import heard
from spiritlevel.lent.norms import batch_norms
from spiritlevel.lent.pooled import Pooled
from spiritlevel.probe.batches_in import Reading, Recorder
from spiritlevel.probe.features_last import FeaturesLast, fed_features_last
from spiritlevel.probe.layers import norm_places
from spiritlevel.probe.mates import Mates, among_others

__all__ = ["DROPOUT_BATCHES", "Evidence", "Layer", "NonFinite", "measure"]

DROPOUT_BATCHES = 4
"""Batches that are run once more without dropout: a variance over thousands of values is known."""


@dataclass(frozen=True)
class Layer:
    """One batch norm, as found and as fed."""

    path: str
    kind: str
    """Its class."""
    momentum: float | None
    eps: float
    dtype: torch.dtype
    """Of the running statistics, or of what the layer was built with."""
    running_mean: Tensor | None
    """(C,) float64, as found."""
    running_var: Tensor | None
    batches_tracked: int | None
    called: bool
    """In a pass of these batches."""
    frozen: bool
    """Keeps to its running statistics while the model trains: see `as_used.frozen_norms`."""
    train: Reading | None
    """None where it was not called, or never fed finite values."""
    eval: Reading | None
    without_dropout: tuple[Pooled, Pooled] | None
    """The input in training on a few batches: as it is, and with all dropout off."""
    features_last: FeaturesLast | None
    """What it was given as (N, L, features), with L as the channels, if it was."""
    single: bool
    """A batch had one value a channel, which training refuses."""

    @property
    def as_built(self) -> bool:
        """Whether its running statistics are 0 and 1, and no batch was counted."""
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None or self.batches_tracked:
            return False
        return bool((mean == 0).all() and (var == 1).all())


@dataclass(frozen=True)
class NonFinite:
    """An input of a norm that held NaN or infinity, the first that did in its batch."""

    path: str
    mode: str
    batch: int
    values: int
    given: bool
    """They were in the batch itself."""


@dataclass(frozen=True)
class Evidence:
    layers: dict[str, Layer]
    """Batch norms by path, in the order of the forward pass; those not called at the end."""
    sizes: tuple[int, ...]
    """Samples of each batch."""
    exhausted: bool
    """There were no more batches."""
    labels: tuple[Tensor, ...] | None
    """One class index a sample, by batch; None for other targets."""
    nonfinite: tuple[NonFinite, ...]
    mates: Mates | None
    """None where it could not be measured."""
    dropped: tuple[int, ...]
    """Batches that training refuses, for they give a layer one value a channel."""
    notes: tuple[str, ...]

    @property
    def samples(self) -> int:
        return sum(self.sizes)


def measure(
    model: nn.Module,
    batches: Iterable[Any] | Taken,
    *,
    forward: Forward | None = None,
    most_batches: int = 32,
    progress: Progress | None = None,
) -> Evidence:
    """Run the batches in both modes; the model is left as it was found, also where it raises.

    Raises UsageError for no batches, lazy layers, and a forward pass that raises.
    """
    taken = take(batches, most_batches)
    norms = {path: model.get_submodule(path) for path in norm_places(model)}
    norms.update(batch_norms(model))
    with borrowed(model) as buffers_back:
        found = _Measuring(model, norms, taken, forward, progress, buffers_back)
        found.run()
    return found.evidence()


class _Measuring:
    """One measurement under way."""

    def __init__(
        self,
        model: nn.Module,
        norms: dict[str, nn.Module],
        taken: Taken,
        forward: Forward | None,
        progress: Progress | None,
        buffers_back: Callable[[], None],
    ) -> None:
        self.model, self.norms, self.taken = model, norms, taken
        self.forward, self.progress, self.buffers_back = forward, progress, buffers_back
        self.batch_norms = batch_norms(model)
        self.state = {path: _state(norm) for path, norm in self.batch_norms.items()}
        self.frozen = frozen_norms(model)
        self.recorders: dict[str, Recorder] = {}
        self.nonfinite: list[NonFinite] = []
        self.single: dict[int, str] = {}
        self.features_last: dict[str, FeaturesLast] = {}
        self.mates: Mates | None = None
        dropouts = active_dropouts(model) if self.batch_norms else []
        self.modes = ["eval", "train"] + ["without dropout"] * bool(dropouts)

    def run(self) -> None:
        for mode in self.modes:
            few = mode == "without dropout"
            batches = self.taken.batches[: DROPOUT_BATCHES if few else None]
            self.recorders[mode] = Recorder(padding=mode == "train")
            put_in(self.model, "eval" if mode == "eval" else "train", self.frozen)
            if few:
                for each in active_dropouts(self.model):
                    each.eval()
            for index, batch in enumerate(batches):
                if self.progress is not None:
                    self.progress(f"measuring in {mode}", index, len(batches))
                self._pass(mode, index, batch)
            if mode == "eval":
                first = self.taken.batches[0]
                self.mates = among_others(self.model, first, self.forward, self.buffers_back)

    def _pass(self, mode: str, index: int, batch: Any) -> None:
        recorder = self.recorders[mode]
        recorder.starts(index, size_of(batch))

        def hear(path: str, norm: nn.Module, x: Tensor) -> None:
            finite = (
                recorder.reads(path, norm, x)
                if path in self.batch_norms
                else bool(x.isfinite().all())
            )
            if not finite:
                self._hit(path, mode, index, batch, x)

        try:
            with ExitStack() as stack:
                if mode == "train" and index == 0:
                    stack.enter_context(fed_features_last(self.model, self.features_last))
                stack.enter_context(heard(self.norms, hear))
                seeded(self.model)
                run_batch(self.model, batch, self.forward)
        except SingleValue as refused:
            self.single[index] = refused.path
        finally:
            self.buffers_back()

    def _hit(self, path: str, mode: str, index: int, batch: Any, x: Tensor) -> None:
        if any((each.mode, each.batch) == (mode, index) for each in self.nonfinite):
            return  # what comes after the first is its consequence
        tensors = [t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.is_floating_point()]
        given = any(not bool(t.isfinite().all()) for t in tensors)
        values = int((~x.isfinite()).sum())
        self.nonfinite.append(NonFinite(path, mode, index, values, given))

    def evidence(self) -> Evidence:
        readings = {mode: recorder.readings() for mode, recorder in self.recorders.items()}
        called = dict.fromkeys((*readings["eval"], *readings["train"], *self.batch_norms))
        layers = {path: self._layer(path, readings) for path in called}
        notes = list(self.taken.notes)
        silent = [path for path, layer in layers.items() if not layer.called]
        if silent:
            notes.append(f"batch norms that these batches do not reach: {', '.join(silent)}")
        if self.single:
            refused = ", ".join(str(index + 1) for index in sorted(self.single))
            notes.append(f"left out in training, where a layer gets one value: batch {refused}")
        return Evidence(
            layers,
            tuple(map(size_of, self.taken.batches)),
            self.taken.exhausted,
            _labels(self.taken),
            tuple(self.nonfinite),
            self.mates,
            tuple(sorted(self.single)),
            tuple(notes),
        )

    def _layer(self, path: str, readings: dict[str, dict[str, Reading]]) -> Layer:
        train, off = readings["train"].get(path), readings.get("without dropout", {}).get(path)
        pair = None
        if train is not None and off is not None:
            common = sorted(set(train.batches) & set(off.batches))
            if common:
                as_it_is, without = (
                    Pooled.of_all(each.of(each.batches.index(b)) for b in common)
                    for each in (train, off)
                )
                pair = as_it_is, without
        return Layer(
            path,
            type(self.batch_norms[path]).__name__,
            **self.state[path],
            called=any(path in recorder.called for recorder in self.recorders.values()),
            frozen=path in self.frozen,
            train=train,
            eval=readings["eval"].get(path),
            without_dropout=pair,
            features_last=self.features_last.get(path),
            single=path in self.single.values(),
        )


def _state(norm: Any) -> dict[str, Any]:
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    tracked = getattr(norm, "num_batches_tracked", None)
    held = mean if isinstance(mean, Tensor) else getattr(norm, "weight", None)
    momentum = getattr(norm, "momentum", None)
    return {
        "momentum": momentum if momentum is None else float(momentum),
        "eps": float(getattr(norm, "eps", 0.0)),
        "dtype": held.dtype if isinstance(held, Tensor) else torch.float32,
        "running_mean": _copied(mean),
        "running_var": _copied(var),
        "batches_tracked": int(tracked) if isinstance(tracked, Tensor) else None,
    }


def _copied(value: Any) -> Tensor | None:
    return value.detach().double().cpu().flatten() if isinstance(value, Tensor) else None


def _labels(taken: Taken) -> tuple[Tensor, ...] | None:
    """The class indices, where every batch has one a sample."""
    found = []
    for batch in taken.batches:
        given = targets(batch)
        if given is None or given.is_floating_point() or given.dim() != 1:
            return None
        if len(given) != size_of(batch):
            return None
        found.append(given.detach().cpu().long())
    return tuple(found)
