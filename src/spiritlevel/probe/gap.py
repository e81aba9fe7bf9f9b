"""How much of what a model loses in eval mode is batch normalization's.

The same batches are scored in eval mode; with batch statistics, where only the batch norms are in
training mode, so dropout is off; and after recalibrating, with the running statistics replaced for
a while by the moments of these batches. Where batch statistics do better, each layer alone is put
on them, and the share of the gap that closes says how much of it is that layer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.lent.as_used import borrowed, put_in, seeded
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
from spiritlevel.lent.score import Metric, Scored, difference, metric_of, output_of, score, scored
from spiritlevel.probe.batches_in import Reading, Recorder
from spiritlevel.probe.evidence import Evidence
from spiritlevel.surgery.statistics import set_statistics, tracks

__all__ = ["CURED", "LEAST_GAP", "MOST_LAYERS", "MOST_PASSES", "Gap", "LayerGap", "gap"]

LEAST_GAP: dict[Metric, float] = {"accuracy": 0.02, "mean squared error": 0.05}
"""Below it a gap is none: two points of accuracy, or a share of the error in eval mode."""
CURED = 0.8
"""The share of a gap that recalibrating closes, from which only the statistics were wrong."""
MOST_LAYERS = 24
"""That are ranked: those whose running statistics are the furthest from the batches'."""
MOST_PASSES = 48
"""Forward passes that the ranking may take: so many layers on 2 batches each."""
ENOUGH_SAMPLES = 256
"""For each layer: a share is then known to 6 points, and layers are only ranked by it."""


@dataclass(frozen=True)
class LayerGap:
    module: str
    value: float
    """With only this layer on batch statistics, on the batches that the ranking took."""
    closed: float
    """The share of the gap that this closes."""


@dataclass(frozen=True)
class Gap:
    metric: Metric
    samples: int
    eval: Scored
    batch: Scored | None
    """With batch statistics; None without a batch norm that takes them."""
    recalibrated: Scored | None
    gain: Scored | None
    """Of batch statistics over eval mode on the same samples; above 0 is better."""
    layers: tuple[LayerGap, ...]
    """The largest share first; empty where there is no gap."""
    notes: tuple[str, ...]
    untrained: bool = False
    """Whether no batch norm has ever seen a training batch: its statistics are as built."""

    @property
    def blames(self) -> bool:
        """Whether eval mode does worse than batch statistics, beyond chance and by a matter."""
        if self.gain is None or self.untrained:
            return False
        return self.gain.low > 0 and self.reaches(LEAST_GAP)

    def reaches(self, least: Mapping[Metric, float]) -> bool:
        """Whether the gain is as large: in points of accuracy, or as a share of eval's error."""
        if self.gain is None:
            return False
        scale = 1.0 if self.metric == "accuracy" else max(abs(self.eval.value), 1e-30)
        return self.gain.value >= least[self.metric] * scale

    @property
    def cured(self) -> float | None:
        """The share of the gap that recalibrating closes; None without a gap."""
        if not self.blames or self.batch is None or self.recalibrated is None:
            return None
        return (self.recalibrated.value - self.eval.value) / (self.batch.value - self.eval.value)

    def to_dict(self) -> dict[str, Any]:
        scores = {
            "eval": self.eval,
            "batch": self.batch,
            "recalibrated": self.recalibrated,
            "gain": self.gain,
        }
        return {
            "metric": self.metric,
            "samples": self.samples,
            **{name: None if each is None else each.to_dict() for name, each in scores.items()},
            "blames": self.blames,
            "untrained": self.untrained,
            "layers": [vars(each).copy() for each in self.layers],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """In English: the verdict first, then the layers."""
        shown = f"{self.metric} {_told(self.eval)} in eval mode"
        if self.batch is None:
            return [f"{shown}; no batch normalization takes part, so it is not to blame"]
        shown += f", {_short(self.batch.value)} with batch statistics"
        if self.recalibrated is not None:
            shown += f", {_short(self.recalibrated.value)} after recalibrating a copy"
        return [f"{shown}: {self._verdict()}", *map(self._line, self.layers[:5])]

    def _verdict(self) -> str:
        if self.untrained:
            return "the running statistics are as built; train the model, then ask again"
        if not self.blames:
            worse = self.gain is not None and self.gain.high < 0
            return "batch normalization is not to blame" + (
                ", eval mode does better" if worse else ""
            )
        cured = self.cured
        if cured is None or cured > CURED:
            return "batch normalization is the gap"
        if cured > 0.2:
            return "batch normalization is the gap, of which recalibrating closes a part"
        return "batch normalization is the gap, which recalibrating does not close"

    def _line(self, layer: LayerGap) -> str:
        return (
            f"{layer.module} alone on batch statistics: {_short(layer.value)}, "
            f"{layer.closed:.0%} of the gap"
        )


def _short(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1000 or value == 0 else f"{value:.2g}"


def _told(found: Scored) -> str:
    return f"{_short(found.value)} ({_short(found.low)} to {_short(found.high)})"


def gap(
    model: nn.Module,
    batches: Iterable[Any] | Taken,
    evidence: Evidence,
    *,
    forward: Forward | None = None,
    most_batches: int = 32,
    progress: Progress | None = None,
) -> Gap | None:
    """The gap on batches with targets; None where there are none that fit the output.

    Class indices give accuracy, floats of the output's size the mean squared error. `evidence` is
    that of the same batches. The model is left as it was found. Raises UsageError.
    """
    taken = take(batches, most_batches)
    if any(targets(batch) is None for batch in taken.batches):
        return None
    with borrowed(model) as buffers_back:
        return _Scoring(model, evidence, taken, forward, progress, buffers_back).run()


class _Scoring:
    """One measurement under way."""

    def __init__(
        self,
        model: nn.Module,
        evidence: Evidence,
        taken: Taken,
        forward: Forward | None,
        progress: Progress | None,
        buffers_back: Callable[[], None],
    ) -> None:
        self.model, self.forward, self.progress = model, forward, progress
        self.buffers_back = buffers_back
        self.norms = batch_norms(model)
        self.frozen = {path for path, layer in evidence.layers.items() if layer.frozen}
        layers = evidence.layers.items()
        self.order = [path for path, layer in layers if layer.called and not layer.frozen]
        self.notes = list(taken.notes)
        self.untrained = bool(self.order) and all(
            evidence.layers[path].as_built and _channels_alike(self.norms[path])
            for path in self.order
        )
        refused = set(evidence.dropped)
        batches = enumerate(taken.batches)
        self.batches = [b for i, b in batches if i not in refused and size_of(b)]
        if refused and self.batches:
            self.notes.append(f"without {len(refused)} batches that training refuses")
        self.metric: Metric | None = None

    def run(self) -> Gap | None:
        if not self.batches:
            return None
        before = self._score("eval", self.batches, "scoring in eval mode")
        if before is None or self.metric is None:
            return None
        samples, plain = sum(map(len, before)), scored(torch.cat(before), self.metric)
        if not self.order:
            return Gap(self.metric, samples, plain, None, None, None, (), tuple(self.notes))
        recorder = Recorder()
        batch = self._score("batch", self.batches, "scoring with batch statistics", recorder)
        if batch is None:
            return None
        self._recalibrate(recorder)
        again = self._score("eval", self.batches, "scoring a recalibrated copy", keep=True)
        self.buffers_back()
        gain = _gain(before, batch, self.metric)
        found = Gap(
            self.metric,
            samples,
            plain,
            scored(torch.cat(batch), self.metric),
            None if again is None else scored(torch.cat(again), self.metric),
            gain,
            (),
            tuple(self.notes),
            self.untrained,
        )
        if not found.blames:
            return found
        layers = self._ranked(before, batch, recorder.readings())
        return Gap(**{**vars(found), "layers": layers, "notes": tuple(self.notes)})

    def _ranked(
        self, before: list[Tensor], batch: list[Tensor], fed: dict[str, Reading]
    ) -> tuple[LayerGap, ...]:
        if not fed:
            return ()
        furthest = sorted(fed, key=lambda path: -_drift(self.norms[path], fed[path]))
        layers = furthest[:MOST_LAYERS]
        wanted = math.ceil(ENOUGH_SAMPLES * len(batch) / max(1, sum(map(len, batch))))
        each = max(1, min(len(batch), MOST_PASSES // len(layers), wanted))
        places = [round(i * (len(self.batches) - 1) / max(each - 1, 1)) for i in range(each)]
        if each < len(self.batches) or len(layers) < len(self.order):
            of = f"{len(layers)} of {len(self.order)} layers"
            self.notes.append(f"ranked {of} on {each} of {len(self.batches)} batches")
        start, end = (float(torch.cat([s[p] for p in places]).nanmean()) for s in (before, batch))
        found = []
        for path in layers:
            some = [self.batches[place] for place in places]
            values = self._score("eval", some, f"scoring {path} alone", alone=path)
            if values is not None and end != start:
                value = float(torch.cat(values).nanmean())
                found.append(LayerGap(path, value, (value - start) / (end - start)))
        return tuple(sorted(found, key=lambda layer: -layer.closed))

    def _score(
        self,
        mode: str,
        batches: Sequence[Any],
        what: str,
        recorder: Recorder | None = None,
        *,
        alone: str | None = None,
        keep: bool = False,
    ) -> list[Tensor] | None:
        """Each sample's score by batch; None where an output does not fit its targets.

        With `keep` the buffers stay as they are: those of the recalibrated copy.
        """
        put_in(self.model, mode, self.frozen)
        if alone is not None:
            self.norms[alone].training = True
        found = []
        for index, batch in enumerate(batches):
            if self.progress is not None:
                self.progress(what, index, len(batches))
            seeded(self.model)
            try:
                output = output_of(self._run(batch, recorder, index))
            except SingleValue:
                return None
            finally:
                if not keep:
                    self.buffers_back()
            target = targets(batch)
            assert target is not None  # as `gap` has seen
            metric = None if output is None else metric_of(output, target)
            if output is None or metric is None:
                return None
            self.metric = metric
            found.append(score(output, target))
        return found

    def _run(self, batch: Any, recorder: Recorder | None, index: int) -> Any:
        if recorder is None:
            return run_batch(self.model, batch, self.forward)
        recorder.starts(index, size_of(batch))
        with heard({path: self.norms[path] for path in self.order}, recorder.reads):
            return run_batch(self.model, batch, self.forward)

    def _recalibrate(self, recorder: Recorder) -> None:
        """Write what the batch norms have just been fed, the variance unbiased as torch has it."""
        for path, reading in recorder.readings().items():
            if tracks(self.norms[path]):
                set_statistics(self.norms[path], reading.pooled, len(reading.batches))


def _channels_alike(norm: nn.Module) -> bool:
    """Whether gamma and beta are the same in all channels: training tells them apart."""
    learned = [getattr(norm, name, None) for name in ("weight", "bias")]
    return all(not isinstance(t, Tensor) or bool((t == t.flatten()[:1]).all()) for t in learned)


def _drift(norm: nn.Module, reading: Reading) -> float:
    """How far the running statistics are from what the layer is fed, in the middle channel."""
    mean, var = (getattr(norm, name, None) for name in ("running_mean", "running_var"))
    if mean is None or var is None:
        return 0.0
    pooled = reading.pooled
    fed_var = pooled.var.clamp(min=1e-30)
    shift = (mean.double().cpu().flatten() - pooled.mean).abs() / fed_var.sqrt()
    scale = (var.double().cpu().flatten().clamp(min=1e-30) / fed_var).log().abs()
    return float((shift + scale).nan_to_num(nan=1e30).median())


def _gain(before: list[Tensor], batch: list[Tensor], metric: Metric) -> Scored:
    pair = (batch, before) if metric == "accuracy" else (before, batch)
    return difference(*pair, metric)
