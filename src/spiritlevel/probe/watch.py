"""`Probe`: the numbers of every normalization layer while a model trains, and nothing changed.

At every step passes are only counted (`counting`). In sampled steps layers are read (`reading`):
our own tell what they have computed anyway, others are hooked. Graphs that torch.compile makes are
left as they are: what runs in them is not seen, and `Probe.unseen` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from operator import index
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.catalogue import speaking
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend, ops
from spiritlevel.lent.norms import batch_norms
from spiritlevel.nn.observe import Statistics, Values, observing, tells
from spiritlevel.probe.columns import COLUMN, LOGGED, METRICS, as_table
from spiritlevel.probe.counting import Counts, LayerCounts, Mode, in_backward
from spiritlevel.probe.hooks import Hook
from spiritlevel.probe.layers import WEIGHT_LAYERS, norm_places
from spiritlevel.probe.learning import Learning, learned
from spiritlevel.probe.overhead import Overhead
from spiritlevel.probe.reading import Moments, Sample, moments_within, spread
from spiritlevel.probe.saturation import ACTIVATIONS, saturated
from spiritlevel.probe.steps import Steps
from spiritlevel.probe.table import Layer, Readings

__all__ = ["METRICS", "Probe"]


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
        if isinstance(every, bool) or not isinstance(every, SupportsIndex) or index(every) < 1:
            raise UsageError(f"got every={every!r}; wanted 1 or more steps from sample to sample")
        self.model, self.every = model, index(every)
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
        self._steps = Steps(model, optimizer, self.counts, watcher=self)
        self._path = {id(m): path for path, m in self._layers.items()}
        self._samples: dict[str, Sample] = {}
        self._running: dict[str, Moments] = {}
        self._sampling, self._inside, self._grad = True, 0, False
        self._learning: dict[str, Learning] = {}
        self._writers: list[tuple[Any, int]] = []
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
        self._stack = None
        self._steps.settle()
        self.overhead.end()
        self._look_for_changes()
        self._forget()

    def _attach(self, stack: ExitStack) -> None:
        for path, module in self._norms.items():
            self.counts.layers[path] = counted = LayerCounts()
            counted.begin(module, self._axis(module))
        self._steps.attach(stack)
        stack.enter_context(observing(self._told))
        for path, module in self._layers.items():
            if tells(module):
                continue
            norm = path in self._norms
            if norm or isinstance(module, ACTIVATIONS):
                hook = Hook(self._norm_called if norm else self._activation_called, path)
                hook.told = not norm
                handle = module.register_forward_hook(hook, prepend=True, with_kwargs=norm)
                stack.callback(handle.remove)
        root = self.model.register_forward_pre_hook(Hook(self._begins))
        stack.callback(root.remove)
        ends = self.model.register_forward_hook(Hook(self._ends), always_call=True)
        stack.callback(ends.remove)

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

    def _told(
        self, layer: nn.Module, shape: torch.Size, values: Values, statistics: Statistics | None
    ) -> None:
        path = self._path.get(id(layer))
        if path in self._norms:
            self._ran(path, layer, shape, values, statistics)
        elif path is not None:
            self._activation_ran(path, layer, values)

    def _norm_called(self, path: str, module: nn.Module, inputs: Any, named: Any, y: Any) -> None:
        if torch.compiler.is_compiling():
            return
        x = next(iter((*inputs, *named.values())), None)
        if isinstance(x, Tensor):
            output = y[0] if isinstance(y, tuple) else y
            self._ran(path, module, x.shape, lambda: (x, output), None)
        else:
            self._troubles.setdefault(path, f"its input is a {type(x).__name__}, not a tensor")

    def _activation_called(self, path: str, module: nn.Module, inputs: Any, y: Any) -> None:
        if not torch.compiler.is_compiling() and isinstance(y, Tensor):
            self._activation_ran(path, module, lambda: (y, y))

    def _activation_ran(self, path: str, module: nn.Module, values: Values) -> None:
        if not (self._sampling and self._reads()):
            return
        with self.overhead.taking(True), self._careful(path):
            _, y = values()
            if not y.numel():
                return
            self._sample(path, 1).take(None, y, lambda: None)
            share = saturated(module, spread(y.detach()))
            if share is not None:
                self._samples[path].saturated.append(share)

    def _ran(
        self,
        path: str,
        layer: nn.Module,
        shape: torch.Size,
        values: Values,
        known: Statistics | None,
    ) -> None:
        """At every step of every layer, hence without the comfort of a `with`."""
        start = perf_counter_ns()
        grad = self._grad if self._inside else torch.is_grad_enabled()
        self.counts.layers[path].saw(layer, shape, layer.training, grad)
        if self._sampling and self._reads():
            with self._careful(path):
                self._read(path, layer, *values(), known)
        self.overhead.add(perf_counter_ns() - start, reading=self._sampling)

    def _read(self, path: str, layer: Any, x: Tensor, y: Tensor, known: Statistics | None) -> None:
        batch = id(layer) in self._batch

        def moments() -> Moments | None:
            if known is not None:
                return known()
            if not batch or not layer.training:
                return None
            # A forward of the user's own may checkpoint within, which a look would run again.
            plain = type(layer).__module__.startswith("torch.") and "forward" not in vars(layer)
            within = moments_within(x, y, layer.eps) if plain else None
            return within or ops.statistics_of(x, backend.choose(x, None))

        overwritten = x.data_ptr() == y.data_ptr()
        sample = self._sample(path, self._axis(layer))
        sample.take(None if overwritten else x, y, moments, apart=layer.training or not batch)

    def _axis(self, layer: nn.Module) -> int:
        """Of the channels: 1, or for layer norms the last."""
        channels = hasattr(layer, "num_features") or hasattr(layer, "num_channels")
        return 1 if channels or id(layer) in self._batch else -1

    def _reads(self) -> bool:
        """Whether this is a training pass, and none that a checkpoint runs again."""
        grad = self._grad if self._inside else torch.is_grad_enabled()
        return grad and not in_backward()

    def _sample(self, path: str, axis: int) -> Sample:
        if path not in self._samples:
            self._samples[path] = Sample(axis)
        return self._samples[path]

    @contextmanager
    def _careful(self, path: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._trouble(path, error)

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

    # What `Steps` tells.

    def before_step(self, _optimizer: Any) -> None:
        if self._sampling:
            with self.overhead.taking(True):
                for path, layer in self._layers.items():
                    with self._careful(path):
                        self._learning[path] = Learning(layer)

    def gradients_are_there(self) -> None:
        with self.overhead.taking(True):
            for path, learning in self._learning.items():
                with self._careful(path):
                    learning.read_gradient(self._steps.optimizer)

    def after_step(self) -> None:
        with self.overhead.taking(self._sampling):
            for counted in self.counts.layers.values():
                counted.step()
            self.overhead.step(sampled=self._sampling)
            if self._sampling:
                self._write_down()
            self._sampling = self.counts.steps % (self.every * self.readings.stride) == 0

    def another_pass(self) -> None:
        for counted in self.counts.layers.values():
            counted.another_pass()

    def step_was_skipped(self, *, late: bool) -> None:
        for counted in self.counts.layers.values():
            counted.skipped(late=late)
        self._forget()

    def _forget(self) -> None:
        self._samples.clear()
        self._running.clear()
        self._learning.clear()

    def _write_down(self) -> None:
        step = self.counts.steps - 1
        rows: list[dict[str, Tensor]] = []
        for path, layer in self._layers.items():
            found: dict[str, Tensor] = {}
            with self._careful(path):
                found |= self._row(path, layer)
            rows.append(found)
        values = as_table(rows)
        self.readings.add(step, values)
        for writer, first in tuple(self._writers):
            try:
                self._log(writer, first + step, values)
            except Exception as error:  # a full disk ends the log, not the training
                self._writers.remove((writer, first))
                self._trouble(f"the writer ({type(writer).__name__})", error)
        self._forget()

    def _row(self, path: str, layer: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        sample = self._samples.get(path)
        if sample is not None:
            found |= sample.row()
            if sample.input is not None and path in self._running:
                found |= sample.against(self._running[path], layer.eps)
        if path in self._norms:
            found |= learned(layer)
        learning = self._learning.get(path)
        return found | (learning.after() if learning else {})

    # What the user asks for.

    @property
    def unseen(self) -> list[str]:
        """What the probe could not see, and why."""
        found = [f"{path}: {why}" for path, why in self._troubles.items()]
        blind = sum(map(self._is_blind, self.counts.layers.values()))
        if blind and self.counts.steps:
            inside = self._compiled or not self._trained_in_sight
            where = "trained only within graphs of torch.compile" if inside else "never ran"
            found.append(
                f"{blind} of {len(self._norms)} normalization layers {where}: of these gamma, beta "
                "and gradients are read; inputs, outputs, running statistics and passes are not"
            )
        if self.counts.steps and not self._steps.stepped:
            found.append(
                "no optimizer of torch's stepped: a change of the parameters counts as a step, and "
                "gradients and updates are not read"
            )
        return found

    @property
    def _trained_in_sight(self) -> bool:
        return any(mode.grad for mode in self.counts.forwards)

    @property
    def _compiled(self) -> bool:
        return any(
            hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
            for module in self.model.modules()
        )

    def _is_blind(self, counted: LayerCounts) -> bool:
        """Whether no training pass of a layer was seen, though there must have been some."""
        if self._compiled or not self._trained_in_sight:
            return not any(mode.grad for mode in counted.forwards)
        return not counted.forwards

    def _look_for_changes(self) -> None:
        """Layers are those that there were at the start; by now they have their last class."""
        now = dict(self.model.named_modules())
        for path, module in self._layers.items():
            if now.get(path) is not module:
                self._troubles.setdefault(path, "it was taken away while the probe ran")
        self.readings.layers = tuple(
            replace(layer, type=type(self._layers[layer.path]).__name__)
            for layer in self.readings.layers
        )

    @property
    def is_open(self) -> bool:
        """Whether its block runs."""
        return self._stack is not None

    @property
    def optimizer(self) -> Any:
        """The one that was given, else the last that stepped, else None."""
        return self._steps.optimizer

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """What runs in this block is one pass of the model, though no `model(...)` begins it.

        For models that are trained by another method, such as Lightning's `training_step`.
        """
        self._begins(self.model, None)
        try:
            yield
        finally:
            self._ends(self.model, None, None)

    def log_to(self, writer: Any, *, first_step: int = 0) -> None:
        """Give a few numbers of each layer to a writer, such as TensorBoard's `SummaryWriter`.

        Those read so far, and each sample when it is taken, by `add_scalar(tag, value, step)`. The
        probe's step 0 is the writer's `first_step`. Raises UsageError.
        """
        if not callable(getattr(writer, "add_scalar", None)):
            raise UsageError(
                f"got {type(writer).__name__}; wanted a writer with add_scalar(tag, value, step), "
                "such as torch.utils.tensorboard.SummaryWriter"
            )
        for step, values in zip(self.readings.steps, self.readings._values, strict=True):
            self._log(writer, first_step + step, values)
        self._writers.append((writer, first_step))

    def _log(self, writer: Any, step: int, values: Any) -> None:
        for metric in LOGGED:
            column = COLUMN[metric]
            for layer, row in zip(self.readings.layers, values, strict=True):
                if np.isfinite(row[column]):
                    writer.add_scalar(f"{metric}/{layer.path}", float(row[column]), step)

    def report(self, path: str | Path, *, lang: str | None = None) -> Path:
        """A page with heat-maps of depth by time; `lang` is its language, "en" or "zh".

        Raises UsageError, MissingExtra.
        """
        from spiritlevel.probe.record import record_of
        from spiritlevel.report import probe_page

        with speaking(lang):
            return probe_page.write(record_of(self), Path(path))

    def __repr__(self) -> str:
        steps = f"{self.counts.steps:,} steps, {len(self.readings.steps)} read"
        told = f"{type(self.model).__name__}, {len(self._norms)} normalization layers: {steps}"
        gaps = f"; {len(self.unseen)} remarks in .unseen" if self.unseen else ""
        return f"Probe({told}; {self.overhead}{gaps})"

    def _repr_html_(self) -> str:
        """Each norm layer's last reading, in a notebook."""
        from spiritlevel.probe.record import latest_of
        from spiritlevel.report.probe_cell import probe_html

        return probe_html(latest_of(self))


def _kind(module: nn.Module, norm: bool) -> str:
    if norm:
        return "norm"
    if isinstance(module, ACTIVATIONS):
        return "activation"
    return "weight" if isinstance(module, WEIGHT_LAYERS) else ""
