"""What the probe costs a GhostNet's training steps, beside the usual way to look into one.

That way is a forward hook on each norm that hands its output to TensorBoard's `add_histogram`. Five
networks that start alike take steps in turn: one alone, two with a probe, which counts in one and
reads at every step in the other, and two with the logger, idle and writing. One step in `every` is
a dear one, so on average a step costs ((every - 1) * cheap + dear) / every more.

The cost is told twice. By the clock: the time inside hooks, which both keep, and the time that
torch takes to call them, over that of a step alone; it is exact to microseconds. By the wall: steps
with against steps without, which holds whatever a hook may slow down, but where steps vary by ten
per cent it cannot show one. All five have the same numbers to the last bit; that is seen to first.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiritlevel.bench.agree import agree
from spiritlevel.bench.setting import Progress, Setting, share_of
from spiritlevel.bench.step import Step
from spiritlevel.bench.timing import LEVEL, Ratio, Samples, Subject, interleaved, summaries, summary
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
from spiritlevel.models.aside import layer_by_layer
from spiritlevel.probe.layers import norm_places
from spiritlevel.probe.watch import Probe

__all__ = ["SIZES", "probe"]

SIZES = {32: 64, 224: 32}
"""Pixels a side -> images of a step."""
_PEER = "histograms"
_DRAWS = 2000


def probe(
    *,
    sizes: tuple[int, ...] = tuple(SIZES),
    batch: int | None = None,
    every: int = 50,
    rounds: int = 20,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that was measured, for JSON. Raises UsageError, and Mismatch where numbers differ."""
    unknown = [size for size in sizes if size < 32]
    if unknown or not sizes or (batch is not None and batch < 2) or every < 2:
        raise UsageError(
            f"got sizes {sizes}, {batch=}, {every=}; wanted images of 32 pixels or more, 2 or more "
            "of them, and an interval of 2 steps or more"
        )
    with Setting(rounds=rounds, threads=threads) as setting:
        rows = []
        for done, size in enumerate(sizes):
            tell = share_of(progress, done / len(sizes), 1 / len(sizes), f"{size}x{size}")
            images = batch or SIZES.get(size, 16)
            rows.append(_measure(size, images, every, rounds, tell))
        return {
            "command": "bench probe",
            "settings": setting.told() | {"every": every, "model": "ghostnet_100"},
            "environment": setting.environment(),
            "cases": rows,
            "meaning": {
                "inside": "time in hooks and of calling them; share: on average, of a step alone",
                "cost": "time of a step on average, over that of a step without; 1.02 costs 2 %",
                "cheap": "a step that only counts, or whose hooks return at once",
                "dear": "a step that reads every layer, or writes every histogram",
            },
        }


def _measure(
    size: int, batch: int, every: int, rounds: int, tell: Callable[[float], None]
) -> dict[str, Any]:
    with ExitStack() as stack:
        steps = _steps(size, batch, stack)
        _checked(steps, f"{size}x{size}")
        clocks = {name: step.clock.since() for name, step in steps.items() if step.clock}
        samples = interleaved([Subject(name, step) for name, step in steps.items()], rounds, tell)
        alone = summary(samples["alone"]).median
        inside = {
            name: _inside(clocks[f"{name}, cheap"](), clocks[f"{name}, dear"](), every, alone)
            for name in ("probe", _PEER)
            if f"{name}, dear" in samples
        }
        cost = {
            name: _cost(samples, f"{name}, cheap", f"{name}, dear", every).to_json()
            for name in ("probe", _PEER)
            if f"{name}, dear" in samples
        }
    return {
        "size": size,
        "batch": batch,
        "norms": len(norm_places(steps["alone"].net)),
        "seconds": summaries(samples),
        "inside": inside,
        "cost": cost,
    }


def _inside(cheap: float, dear: float, every: int, alone: float) -> dict[str, float]:
    average = ((every - 1) * cheap + dear) / every
    return {"cheap": cheap, "dear": dear, "share": average / alone}


class _Clock:
    """Seconds inside hooks, and of calling them."""

    def __init__(self, seconds: Callable[[], float], hooks: int) -> None:
        self.seconds, self.hooks = seconds, hooks
        self.steps = 0

    def since(self) -> Callable[[], float]:
        """Seconds a step, from now on."""
        before, steps = self.seconds(), self.steps
        called = self.hooks * _dispatch()

        def told() -> float:
            return (self.seconds() - before) / (self.steps - steps) + called

        return told


def _dispatch() -> float:
    """Seconds that torch takes to call a forward hook which does nothing."""
    bare, hooked = nn.Identity(), nn.Identity()
    hooked.register_forward_hook(lambda module, inputs, output: None)
    x = torch.zeros(1)

    def times(module: nn.Module) -> float:
        start = perf_counter()
        for _ in range(200):
            module(x)
        return (perf_counter() - start) / 200

    pairs = [(times(bare), times(hooked)) for _ in range(20)]
    return max(0.0, float(np.median([with_hook - without for without, with_hook in pairs])))


class _Step(Step):
    """A step of whose hooks a clock may know."""

    clock: _Clock | None = None

    def __call__(self) -> dict[str, Tensor]:
        if self.clock is not None:
            self.clock.steps += 1
        return super().__call__()


def _steps(size: int, batch: int, stack: ExitStack) -> dict[str, _Step]:
    torch.manual_seed(0)
    stem = "cifar" if size < 64 else "imagenet"
    net = create_model("ghostnet_100", num_classes=10, stem=stem)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    names = ["alone", "probe, cheap", "probe, dear"]
    writer = _writer(stack)
    if writer is not None:
        names += [f"{_PEER}, cheap", f"{_PEER}, dear"]
    steps = {name: _Step(copy.deepcopy(net), images, labels) for name in names}
    # A probe always reads its first step, which is one of those that are not timed.
    for name, every in (("probe, cheap", 10**9), ("probe, dear", 1)):
        watching = stack.enter_context(Probe(steps[name].net, every=every))
        cost = watching.overhead
        steps[name].clock = _Clock(lambda cost=cost: cost.seconds, _hooks(steps[name].net))  # type: ignore[misc]
    for name, writes in ((f"{_PEER}, cheap", False), (f"{_PEER}, dear", True)):
        if writer is not None:
            spent = stack.enter_context(_logging(steps[name].net, writer, writes=writes))
            steps[name].clock = _Clock(spent, _hooks(steps[name].net))
    return steps


def _hooks(net: nn.Module) -> int:
    """Those that are called."""
    hooks = [h for m in net.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    return sum(not getattr(hook, "told", False) for each in hooks for hook in each.values())


def _writer(stack: ExitStack) -> Any:
    """None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.callback(writer.close)
    return writer


@contextmanager
def _logging(net: nn.Module, writer: Any, *, writes: bool) -> Iterator[Callable[[], float]]:
    """As a user's own logger does it, with a clock; gives the seconds spent."""
    step, spent = 0, 0.0

    def hook(name: str) -> Any:
        def log(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            nonlocal spent
            start = perf_counter()
            if writes:
                writer.add_histogram(name, output.detach(), step)
            spent += perf_counter() - start

        return log

    with ExitStack() as stack:
        for name in norm_places(net):
            handle = net.get_submodule(name).register_forward_hook(hook(name))
            stack.callback(handle.remove)
        yield lambda: spent


def _checked(steps: Mapping[str, _Step], where: str) -> None:
    """Two steps of each, with the same dropout: measuring changes no number.

    A hook on a norm has Ghost modules call their layers, so those with one are held to such a step.
    """
    alone = steps["alone"]
    hooked = _Step(copy.deepcopy(alone.net), alone.images, alone.labels)
    for seed in range(2):
        torch.manual_seed(seed)
        with layer_by_layer():
            of_layers = hooked()
        found = {}
        for name, step in steps.items():
            torch.manual_seed(seed)
            found[name] = step()
            expected = of_layers if name.startswith(_PEER) else found["alone"]
            agree(name, found[name], expected, where=where, tolerance=0.0)


def _cost(samples: Mapping[str, Samples], cheap: str, dear: str, every: int) -> Ratio:
    """Of the average step over one alone, with a bootstrap over the rounds."""
    drawn = np.random.default_rng(0).integers(
        len(samples["alone"]), size=(_DRAWS, len(samples["alone"]))
    )

    def median(name: str, rows: Any = slice(None)) -> Any:
        return np.median(np.asarray(samples[name])[rows], axis=-1)

    def of(rows: Any) -> Any:
        return (
            ((every - 1) * median(cheap, rows) + median(dear, rows)) / every / median("alone", rows)
        )

    low, high = np.quantile(of(drawn), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Ratio(float(of(slice(None))), float(low), float(high))
