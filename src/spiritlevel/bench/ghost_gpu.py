"""Whole training steps of GhostNet on a GPU: ours, torch's kernels in our model, timm's, ResNet-18.

All in channels-last, forward and loss under autocast to bfloat16, with SGD `fused`. Each step is
timed twice: as a program takes it, until the device has done it, where the processor's time to
hand over hundreds of small operations counts; and *captured*, replayed as one CUDA graph, which
leaves the device's own time. Names, weights and comparison are those of `ghost`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from spiritlevel.bench import theirs
from spiritlevel.bench.agree import agree
from spiritlevel.bench.device import Device
from spiritlevel.bench.ghost import HALF_TOLERANCE
from spiritlevel.bench.nets import ResNet18
from spiritlevel.bench.setting import Progress, Setting, first_line, share_of
from spiritlevel.bench.step import Step
from spiritlevel.bench.timing import Subject, best, interleaved, ratio, summaries
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model

__all__ = ["ghost_on_gpu"]

_MODEL, _CLASSES, _BATCH = "ghostnet_100", 1000, 256
_CAPTURED = " captured"
_OVER = {
    "timm": "timm's step over ours",
    "timm compile": "timm's step under torch.compile over ours",
    "plain": "our model on torch's kernels over ours",
    "resnet18": "ResNet-18's step over ours",
}
_FIGURES = (
    _OVER
    | {f"{name}{_CAPTURED}": f"{what}, both captured" for name, what in _OVER.items()}
    | {"best": "the fastest of timm's forms over the fastest of ours"}
)
_WARM_UP = 3
_stream: Any = torch.cuda.Stream


def ghost_on_gpu(
    *,
    device: str = "cuda",
    batch: int | None = None,
    size: int = 224,
    rounds: int = 10,
    compiled: bool = True,
    scale: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that was measured, for JSON; on a processor nothing is captured.

    Raises UsageError, and Mismatch where outputs differ.
    """
    where, batch = Device(device), _BATCH if batch is None else batch
    if batch < 2 or size < 32:
        raise UsageError(f"got batch={batch}, size={size}; wanted 2 images or more, 32 px or more")
    notes: list[str] = []
    with Setting(rounds=rounds, threads=None) as setting, where.current():
        tell = share_of(progress, 0.0, 1.0, f"{_MODEL} at {size}x{size}, batch {batch}")
        steps, far = _steps(where, (batch, 3, size, size), compiled, scale, notes)
        graphs_of = _captured(steps, notes) if where.is_gpu else {}
        captured = {f"{name}{_CAPTURED}": graph for name, graph in graphs_of.items()}
        subjects = [Subject(name, step) for name, step in steps.items()]
        samples = interleaved(subjects, rounds, lambda s: tell(0.5 * s), clock=where.waited)
        graphs = [Subject(name, graph.replay) for name, graph in captured.items()]
        samples |= interleaved(graphs, rounds, lambda s: tell(0.5 + 0.5 * s), clock=where.seconds)
        peaks = {name: where.peak_bytes(step) for name, step in steps.items()}
        return {
            "command": "bench ghost",
            "settings": setting.told()
            | {"dtype": "bfloat16", "optimizer": "SGD, momentum 0.9, fused", "device": device},
            "environment": setting.environment() | {"timm": theirs.version(), "gpu": where.model},
            "tolerance": {"bfloat16": HALF_TOLERANCE},
            "notes": notes,
            "cases": [row := _row((batch, size), samples, peaks, far)],
            "meaning": {name: _FIGURES[name] for name in row["ratios"]},
        }


def _steps(
    where: Device, shape: tuple[int, ...], compiled: bool, scale: bool, notes: list[str]
) -> tuple[dict[str, Step], dict[str, float]]:
    """Those that compute the same as the first, after two steps; and how far each was from it."""
    torch.manual_seed(0)
    net = create_model(_MODEL, _CLASSES, drop_rate=0.0)
    last: Any = {"memory_format": torch.channels_last}
    images = torch.randn(shape, device=where.device).contiguous(**last)
    labels = torch.randint(_CLASSES, shape[:1], device=where.device)

    def step(model: Any, kernels: str | None = None) -> Step:
        there = copy.deepcopy(model).to(where.device, **last)
        return Step(there, images, labels, kernels=kernels, half=True, fused=True)

    steps = {"plain": step(net, "aten"), "ours": step(net)}
    other = theirs.ghostnet(_MODEL, _CLASSES, "imagenet")
    if other is None:
        notes.append(theirs.LEFT_OUT)
    else:
        other.load_state_dict(net.state_dict())
        steps["timm"] = step(other)
        if compiled:
            steps["timm compile"] = step(other)
            steps["timm compile"].net.compile(dynamic=False)
    first, far = steps["plain"](), {}
    for name, each in steps.items():
        if name != "plain":
            far[name] = agree(name, each(), first, where=_MODEL, tolerance=HALF_TOLERANCE)
    if scale:
        steps["resnet18"] = step(ResNet18(num_classes=_CLASSES, stem="imagenet"))
    return steps, far


def _captured(steps: Mapping[str, Step], notes: list[str]) -> dict[str, Any]:
    found = {}
    for name, step in steps.items():
        aside = _stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except RuntimeError as error:
            notes.append(f"{name} is not captured: {first_line(error)}")
        else:
            found[name] = graph
    return found


def _row(
    images: tuple[int, int],
    samples: Mapping[str, list[float]],
    peaks: Mapping[str, int],
    far: Mapping[str, float],
) -> dict[str, Any]:
    ratios = {}
    for name in samples:
        ours = f"ours{_CAPTURED}" if name.endswith(_CAPTURED) else "ours"
        if not name.startswith("ours") and ours in samples:
            ratios[name] = ratio(samples[name], samples[ours]).to_json()
    forms = [[n for n in samples if n.split()[0] == family] for family in ("timm", "ours")]
    if forms[0]:
        fastest = [best(samples, names) for names in forms]
        ratios["best"] = ratio(*fastest).to_json()
    return {
        "model": _MODEL,
        "batch": images[0],
        "size": images[1],
        "classes": _CLASSES,
        "largest_difference": dict(far),
        "seconds": summaries(samples),
        "ratios": ratios,
        "peak_bytes": dict(peaks),
        "peak_ratio": {n: peaks["ours"] / p for n, p in peaks.items() if n != "ours"},
    }
