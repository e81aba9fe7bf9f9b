"""`Probe`: the numbers of every normalization layer while a model trains, and nothing changed.

At every step passes are only counted (`counting`). In sampled steps layers are read (`reading`):
our own tell what they have computed anyway, others are hooked. Graphs that torch.compile makes are
left as they are: what runs in them is not seen, and `Probe.unseen` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend, ops
from spiritlevel.nn.observe import Statistics, observing, tells
from spiritlevel.probe.counting import Counts, LayerCounts, Mode, in_backward
from spiritlevel.probe.layers import WEIGHT_LAYERS, batch_norms, norm_places
from spiritlevel.probe.learning import Learning, learned
from spiritlevel.probe.overhead import Overhead
from spiritlevel.probe.reading import Moments, Sample, moments_within, spread
from spiritlevel.probe.saturation import ACTIVATIONS, saturated
from spiritlevel.probe.steps import Steps
from spiritlevel.probe.table import Layer, Readings

__all__ = ["METRICS", "Probe"]

METRICS = (
    *(
        f"{end}_{what}"
        for end in ("input", "output")
        for what in ("mean", "var", "p05", "p50", "p95")
    ),
    "values",
    "z_median",
    "z_max",
    "log_var_ratio_median",
    "log_var_ratio_worst",
    "pass_shift",
    *(f"{name}_{what}" for name in ("gamma", "beta") for what in ("min", "mean", "max")),
    "grad_norm",
    "update_ratio",
    "dead_share",
    "saturated_share",
    "non_finite",
    "batches_tracked",
)
"""The columns of `Probe.readings`, beside step, layer, kind and type."""
_COLUMN = {metric: column for column, metric in enumerate(METRICS)}
_LOGGED = ("z_median", "log_var_ratio_median", "grad_norm", "update_ratio", "dead_share")


class Probe:
    """Within its block, reads the normalization layers of `model`, whatever loop trains it.

        with sl.Probe(model, optimizer=optimizer, every=50) as probe:
            train(model, loader)
        probe.readings.to_pandas()

    `optimizer` may be left out: torch tells of every optimizer's steps. Sampled are the steps 0,
    `every`, 2 `every`, and so on. `counts` is counted at every step. Loss, gradients, buffers,
    random states and hooks are what they are without it. A probe is used once. Raises UsageError
    for what is no module, an interval below 1, and an optimizer of another model.
    """

    def __init__(self, model: nn.Module, *, optimizer: Any = None, every: int = 50) -> None:
        if not isinstance(model, nn.Module):
            raise UsageError(f"got {type(model).__name__} to probe; wanted a torch.nn.Module")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UsageError(f"got every={every!r}; wanted 1 or more steps from sample to sample")
        self.model, self.every = model, every
        self.counts = Counts()
        self.overhead = Overhead()
        modules = dict(model.named_modules())
        self._norms = {path: modules[path] for path in norm_places(model)}
        self._batch = set(map(id, batch_norms(model).values()))
        self._layers = {path: m for path, m in modules.items() if _kind(m, path in self._norms)}
        layers = [
            Layer(path, _kind(m, path in self._norms), type(m).__name__)
            for path, m in self._layers.items()
        ]
        self.readings = Readings(layers, METRICS)
        """A row for each sampled step and layer."""
        self._steps = Steps(model, optimizer, self.counts, before=self._before, after=self._after)
        self._path = {id(m): path for path, m in self._layers.items()}
        self._samples: dict[str, Sample] = {}
        self._running: dict[str, Moments] = {}
        self._sampling, self._inside, self._grad = True, 0, False
        self._learning: Learning | None = None
        self._writers: list[Any] = []
        self._troubles: dict[str, str] = {}
        self._stack: ExitStack | None = None
        self._used = False

    def __enter__(self) -> Probe:
        if self._used:
            raise UsageError("got a probe that has been used; wanted a new one for each block")
        self._used = True
        with ExitStack() as stack:
            self._attach(stack)
            self._stack = stack.pop_all()
        self.overhead.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._stack.close()
        self._steps.settle()
        self.overhead.end()
        self._samples.clear()
        self._running.clear()

    def _attach(self, stack: ExitStack) -> None:
        for path, module in self._norms.items():
            self.counts.layers[path] = counted = LayerCounts()
            counted.begin(module)
        self._steps.attach(stack)
        stack.enter_context(observing(self._told))
        for path, module in self._layers.items():
            if tells(module):
                continue
            hook = self._norm_ran if path in self._norms else self._activation_ran
            if not isinstance(module, WEIGHT_LAYERS):
                handle = module.register_forward_hook(partial(hook, path), prepend=True)
                stack.callback(handle.remove)
        root = self.model.register_forward_pre_hook(self._begins)
        stack.callback(root.remove)
        stack.callback(self.model.register_forward_hook(self._ends, always_call=True).remove)

    # What the hooks call. Each takes its own time.

    def _begins(self, module: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        with self.overhead.taking(self._sampling):
            self._inside += 1
            if self._inside > 1 or in_backward():
                return
            self._grad = torch.is_grad_enabled()
            mode = Mode(module.training, self._grad)
            self.counts.forwards[mode] += 1
            eval_only = not module.training and not any(m.training for m in self._norms.values())
            self._steps.forward_begins(training=self._grad, all_eval=eval_only)
            if self._sampling and self._grad and not self._running:
                self._keep_running()

    def _ends(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._inside = max(0, self._inside - 1)

    def _told(self, layer: nn.Module, x: Any, y: Any, statistics: Statistics | None) -> None:
        path = self._path.get(id(layer))
        if path is not None:
            self._ran(path, layer, x, y, statistics)

    def _norm_ran(self, path: str, module: nn.Module, inputs: Any, y: Any) -> None:
        if not torch.compiler.is_compiling():
            self._ran(path, module, inputs[0] if inputs else None, y, None)

    def _activation_ran(self, path: str, module: nn.Module, inputs: Any, y: Any) -> None:
        if not self._sampling or torch.compiler.is_compiling() or not self._reads():
            return
        with self.overhead.taking(True), self._careful(path):
            self._sample(path, 1).take(None, y, lambda: None)
            share = saturated(module, spread(y.detach()))
            if share is not None:
                self._samples[path].saturated.append(share)

    def _ran(self, path: str, layer: nn.Module, x: Any, y: Any, known: Statistics | None) -> None:
        """At every step of every layer, hence without the comfort of a `with`."""
        start = perf_counter_ns()
        if isinstance(x, Tensor):
            grad = self._grad if self._inside else torch.is_grad_enabled()
            self.counts.layers[path].saw(layer, x, layer.training, grad)
            if self._sampling and self._reads():
                with self._careful(path):
                    self._read(path, layer, x, y[0] if isinstance(y, tuple) else y, known)
        else:
            self._troubles.setdefault(path, f"its input is a {type(x).__name__}, not a tensor")
        self.overhead.add(perf_counter_ns() - start, reading=self._sampling)

    def _read(self, path: str, layer: Any, x: Tensor, y: Tensor, known: Statistics | None) -> None:
        batch = id(layer) in self._batch
        by_channel = batch or hasattr(layer, "num_features") or hasattr(layer, "num_channels")

        def moments() -> Moments | None:
            if known is not None:
                return known()
            if not batch or not layer.training:
                return None
            within = moments_within(x, y, layer.eps)
            return within or ops.statistics_of(x, backend.choose(x, None))

        overwritten = x.data_ptr() == y.data_ptr()
        sample = self._sample(path, 1 if by_channel else -1)
        sample.take(None if overwritten else x, y, moments)

    def _reads(self) -> bool:
        """Whether this is a training pass, and none that a checkpoint runs again."""
        grad = self._grad if self._inside else torch.is_grad_enabled()
        return grad and not in_backward()

    def _sample(self, path: str, axis: int) -> Sample:
        if path not in self._samples:
            self._samples[path] = Sample(axis)
        return self._samples[path]

    def _careful(self, path: str) -> _Careful:
        return _Careful(partial(self._trouble, path))

    def _trouble(self, path: str, error: Exception) -> None:
        """A layer that cannot be read costs nobody a training run."""
        if path not in self._troubles:
            self._troubles[path] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the probe cannot read {path} and goes on without it: {self._troubles[path]}",
                stacklevel=2,
            )
        self._samples.pop(path, None)

    def _keep_running(self) -> None:
        for path, module in self._norms.items():
            mean = getattr(module, "running_mean", None)
            var = getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(var, Tensor) and not is_lazy(mean):
                self._running[path] = mean.detach().clone(), var.detach().clone()

    # Around an optimizer's step.

    def _before(self, optimizer: Any) -> None:
        if self._sampling:
            with self.overhead.taking(True):
                self._learning = Learning(self._layers, optimizer)

    def _after(self) -> None:
        with self.overhead.taking(self._sampling):
            for counted in self.counts.layers.values():
                counted.step()
            self.overhead.step(sampled=self._sampling)
            if self._sampling:
                self._write_down()
            self._sampling = self.counts.steps % (self.every * self.readings.stride) == 0

    def _write_down(self) -> None:
        step = self.counts.steps - 1
        moved = self._learning.after() if self._learning else {}
        rows: list[dict[str, Tensor]] = []
        for path, layer in self._layers.items():
            found: dict[str, Tensor] = {}
            sample = self._samples.get(path)
            if sample is not None:
                with self._careful(path):
                    found |= sample.row()
                    if sample.input.count and path in self._running:
                        found |= sample.against(self._running[path], layer.eps)
            if path in self._norms:
                found |= learned(layer)
            rows.append(found | moved.get(path, {}))
        values = _as_table(rows)
        self.readings.add(step, values)
        for writer in self._writers:
            self._log(writer, step, values)
        self._samples.clear()
        self._running.clear()
        self._learning = None

    # What the user asks for.

    @property
    def unseen(self) -> list[str]:
        """What the probe could not see, and why."""
        found = [f"{path}: {why}" for path, why in self._troubles.items()]
        blind = sum(not counted.forwards for counted in self.counts.layers.values())
        if blind and self.counts.steps:
            inside = _compiled(self.model) or not self.counts.forwards
            where = "ran only within graphs of torch.compile" if inside else "never ran"
            found.append(
                f"{blind} of {len(self._norms)} normalization layers {where}: of these gamma, beta "
                "and gradients are read; inputs, outputs, running statistics and passes are not"
            )
        if self.counts.steps and not self._steps._stepped:
            found.append(
                "no optimizer of torch's stepped: a change of the parameters counts as a step, and "
                "gradients and updates are not read"
            )
        return found

    @property
    def optimizer(self) -> Any:
        """The one that was given, else the last that stepped, else None."""
        return self._steps.optimizer

    def log_to(self, writer: Any) -> None:
        """Give a few numbers of each layer to a TensorBoard `SummaryWriter`, or what has its

        `add_scalar(tag, value, step)`: those read so far, and each sample when it is taken. Raises
        UsageError.
        """
        if not callable(getattr(writer, "add_scalar", None)):
            raise UsageError(
                f"got {type(writer).__name__}; wanted a writer with add_scalar(tag, value, step), "
                "such as torch.utils.tensorboard.SummaryWriter"
            )
        for step, values in zip(self.readings.steps, self.readings._values, strict=True):
            self._log(writer, step, values)
        self._writers.append(writer)

    def _log(self, writer: Any, step: int, values: Any) -> None:
        for metric in _LOGGED:
            column = METRICS.index(metric)
            for layer, row in zip(self.readings.layers, values, strict=True):
                if np.isfinite(row[column]):
                    writer.add_scalar(f"{metric}/{layer.path}", float(row[column]), step)

    def report(self, path: str | Path) -> Path:
        """A page with heat-maps of depth by time. Raises UsageError, MissingExtra."""
        from spiritlevel.probe.record import record_of
        from spiritlevel.report import probe_page

        return probe_page.write(record_of(self), Path(path))

    def __repr__(self) -> str:
        steps = f"{self.counts.steps:,} steps, {len(self.readings.steps)} read"
        told = f"{type(self.model).__name__}, {len(self._norms)} normalization layers: {steps}"
        gaps = f"; {len(self.unseen)} remarks in .unseen" if self.unseen else ""
        return f"Probe({told}; {self.overhead}{gaps})"


class _Careful:
    """What fails within is handed on, not raised: the user's training goes on."""

    def __init__(self, tell: Callable[[Exception], None]) -> None:
        self.tell = tell

    def __enter__(self) -> None: ...

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self.tell(error)
        return True


def _kind(module: nn.Module, norm: bool) -> str:
    if norm:
        return "norm"
    if isinstance(module, ACTIVATIONS):
        return "activation"
    return "weight" if isinstance(module, WEIGHT_LAYERS) else ""


def _compiled(model: nn.Module) -> bool:
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def _as_table(rows: list[dict[str, Tensor]]) -> Any:
    """(layers, metrics) float64; each device is asked once."""
    table = np.full((len(rows), len(METRICS)), np.nan)
    by_device: dict[Any, list[tuple[int, int, Tensor]]] = {}
    for i, row in enumerate(rows):
        for name, value in row.items():
            by_device.setdefault(value.device, []).append((i, _COLUMN[name], value))
    for cells in by_device.values():
        numbers = torch.stack([value for _, _, value in cells]).tolist()
        for (i, j, _), number in zip(cells, numbers, strict=True):
            table[i, j] = number
    return table
