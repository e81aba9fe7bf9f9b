"""What the probe costs a GhostNet's training steps, beside the usual way to look into one.

That way is a forward hook on each norm that hands its output to TensorBoard's `add_histogram`. Five
networks that start alike take steps in turn: one alone, two with a probe, which counts in one and
reads at every step in the other, and two with the logger, idle and writing. A step in `every` reads
or writes, so a step costs ((every - 1) * the cheap one + the dear one) / every on average. All five
have the same numbers to the last bit, which is seen to before they are timed.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiritlevel.bench.agree import agree
from spiritlevel.bench.setting import Progress, Setting, share_of
from spiritlevel.bench.timing import LEVEL, Ratio, Samples, Subject, interleaved, summary
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
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
        samples = interleaved([Subject(name, step) for name, step in steps.items()], rounds, tell)
        cost = {
            name: _cost(samples, f"{name}, cheap", f"{name}, dear", every).to_json()
            for name in ("probe", _PEER)
            if f"{name}, dear" in samples
        }
    return {
        "size": size,
        "batch": batch,
        "norms": len(norm_places(steps["alone"].net)),
        "seconds": {name: asdict(summary(one)) for name, one in samples.items()},
        "cost": cost,
    }


class _Step:
    def __init__(self, net: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.net, self.images, self.labels = net, images, labels
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def __call__(self) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.net(self.images)
        loss = nn.functional.cross_entropy(logits, self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"the logits": logits.detach(), "the loss": loss.detach()}


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
    stack.enter_context(Probe(steps["probe, cheap"].net, every=10**9))
    stack.enter_context(Probe(steps["probe, dear"].net, every=1))
    if writer is not None:
        stack.enter_context(_logging(steps[f"{_PEER}, cheap"].net, writer, writes=False))
        stack.enter_context(_logging(steps[f"{_PEER}, dear"].net, writer, writes=True))
    return steps


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
def _logging(net: nn.Module, writer: Any, *, writes: bool) -> Iterator[None]:
    """As a user's own logger does it."""
    step = 0

    def hook(name: str) -> Any:
        def log(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if writes:
                writer.add_histogram(name, output.detach(), step)

        return log

    with ExitStack() as stack:
        for name in norm_places(net):
            handle = net.get_submodule(name).register_forward_hook(hook(name))
            stack.callback(handle.remove)
        yield


def _checked(steps: Mapping[str, _Step], where: str) -> None:
    """Two steps of each, with the same dropout: measuring changes no number."""
    for seed in range(2):
        found = {}
        for name, step in steps.items():
            torch.manual_seed(seed)
            found[name] = step()
            agree(name, found[name], found["alone"], where=where, tolerance=0.0)


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
