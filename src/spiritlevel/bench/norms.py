"""Batch norm and what follows it, ours beside torch's: ratios, floor and peak memory.

`peers` says who takes part, `timing` how, `floor` what cannot be beaten, `agree` when nothing is
timed at all. Everything is in one process with one allocator setting, in one type, on one device,
whose clock `device` has.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from spiritlevel.bench.agree import OF_TYPES, agree
from spiritlevel.bench.device import Device
from spiritlevel.bench.figures import FIGURES, figures, ratios
from spiritlevel.bench.floor import COPY, passes
from spiritlevel.bench.peers import Case, Peer, peers
from spiritlevel.bench.setting import Progress, Setting, first_line, share_of
from spiritlevel.bench.timing import Subject, interleaved, summaries, summary
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import activation

__all__ = ["MODES", "SHAPES", "SHAPES_ON_A_GPU", "norms", "parse_shape"]

SHAPES = (
    "32x64x56x56",
    "32x16x112x112",
    "32x480x14x14",
    "64x32x32x32",
    "128x64x32x32",
    "32x960x7x7",
    "4096x256",
    "8x32x16x56x56",
)
SHAPES_ON_A_GPU = (
    "128x64x112x112",
    "256x36x112x112",
    "256x240x56x56",
    "1024x480x14x14",
    "2048x960x7x7",
    "131072x1024",
)
"""Several times as large as a GPU's cache, also in halves."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MODES: dict[str, Callable[[Peer], object]] = {
    "forward": Peer.forward,
    "forward+backward": Peer.forward_and_backward,
    "eval": Peer.eval,
}
_HELD = 24
"""Tensors of the input's size that a case holds at most, with those in float64 counted twice."""


def norms(
    *,
    shapes: Sequence[str] | None = None,
    act: str = "relu",
    adds: Sequence[bool] = (False, True),
    rounds: int = 30,
    threads: int | None = None,
    compiled: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that was measured, for JSON. Raises UsageError, and Mismatch where outputs differ.

    The shapes are SHAPES, or SHAPES_ON_A_GPU, where they are not given.
    """
    where = Device(device)
    activation(act)
    if dtype not in _DTYPES or (dtype == "float16" and not where.is_gpu):
        raise UsageError(f"got dtype {dtype!r}; wanted float32, bfloat16 or, on a GPU, float16")
    if shapes is None:
        shapes = SHAPES_ON_A_GPU if where.is_gpu else SHAPES
    kind = _DTYPES[dtype], where.name
    sizes = [parse_shape(shape, where.memory()) for shape in shapes]
    cases = [Case(size, act, add, *kind) for add in adds for size in sizes]
    if not cases:
        raise UsageError("got no shape; wanted one or more, such as 32x64x56x56")
    notes: list[str] = []
    with Setting(rounds=rounds, threads=threads) as setting:
        rows, samples = [], []
        for done, case in enumerate(cases):
            tell = share_of(progress, done / len(cases), 1 / len(cases), str(case))
            row, of_case = _measure(case, where, rounds, compiled and not notes, notes, tell)
            rows.append(row)
            samples.append((case, of_case))
        return {
            "command": "bench norms",
            "settings": setting.told() | {"act": act, "dtype": dtype, "device": device},
            "environment": setting.environment() | _machine(rows, where),
            "tolerance": OF_TYPES[_DTYPES[dtype]],
            "notes": notes,
            "cases": rows,
            "meaning": FIGURES,
            "figures": figures(samples),
        }


def parse_shape(text: str, memory: int | None = None) -> tuple[int, ...]:
    """ "32x64x56x56" -> (32, 64, 56, 56), if the memory suffices. Raises UsageError."""
    parts = text.lower().split("x")
    shape = tuple(int(part) for part in parts if part.isdecimal())
    if len(shape) != len(parts) or not 2 <= len(shape) <= 5 or 0 in shape:
        raise UsageError(
            f"got shape {text!r}; wanted 2 to 5 whole numbers above 0 with x between: samples, "
            "channels and the sides of the image, such as 32x64x56x56, or 4096x256"
        )
    values = 1
    for size in (shape[0], *shape[2:]):
        values *= size
    if values < 2:
        raise UsageError(
            f"got shape {text!r}, with one value a channel, hence no variance; wanted two or more"
        )
    needed, there = 4 * values * shape[1] * _HELD, memory or _memory()
    if there is not None and needed > there:
        raise UsageError(
            f"got shape {text!r}, which needs some {needed / 2**30:.3g} GiB of memory here, of "
            f"{there / 2**30:.3g}; choose a smaller one"
        )
    return shape


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _measure(
    case: Case,
    where: Device,
    rounds: int,
    compiled: bool,
    notes: list[str],
    tell: Callable[[float], None],
) -> tuple[dict[str, Any], dict[str, dict[str, list[float]]]]:
    """A row of the result, and mode -> name -> seconds."""
    ran = Counter(backend.ran)
    there, worst = _checked(case, compiled, notes)
    kernels = sorted(backend.ran - ran)
    x = there[0].inputs[0].detach()
    to = torch.empty_like(x)
    samples: dict[str, dict[str, list[float]]] = {}
    for done, (mode, run) in enumerate(MODES.items()):
        for peer in there:
            peer.layer.train(mode != "eval")
        subjects = [Subject(peer.name, partial(run, peer)) for peer in there]
        subjects.append(Subject("copy", lambda: to.copy_(x)))
        share = partial(_share, tell, done)
        samples[mode] = interleaved(subjects, rounds, share, clock=where.seconds)
    for peer in there:
        peer.layer.train()
    size = x.numel() * x.element_size()
    cache = where.last_level_cache()
    row = {
        "shape": case.size,
        "act": case.act,
        "add": case.add,
        "tensor_bytes": size,
        "beyond_last_level_cache": None if cache is None else size > cache,
        "kernels_of_ours": kernels,
        "largest_difference": worst,
        "modes": {mode: _mode(case, mode, one) for mode, one in samples.items()},
        "peak_tensors": {p.name: where.peak_bytes(p.forward_and_backward) / size for p in there},
    }
    return row, samples


def _share(tell: Callable[[float], None], done: int, share: float) -> None:
    tell((done + share) / len(MODES))


def _checked(case: Case, compiled: bool, notes: list[str]) -> tuple[list[Peer], dict[str, float]]:
    """Those that can run, after their outputs were found to agree with eager torch's."""
    if compiled:
        import torch._dynamo

        torch._dynamo.reset()  # it gives up on code that it has seen with many shapes
    first, *others = peers(case, compiled=compiled)
    wanted, there, worst = first.outputs(), [first], {}
    for peer in others:
        try:
            got = peer.outputs()
        except RuntimeError as error:
            if not peer.name.startswith("compile"):
                raise
            if not notes:
                notes.append(f"torch.compile is left out: {first_line(error)}")
            continue
        tolerance = OF_TYPES[case.dtype]
        worst[peer.name] = agree(peer.name, got, wanted, where=str(case), tolerance=tolerance)
        there.append(peer)
    return there, worst


def _mode(case: Case, mode: str, samples: Mapping[str, list[float]]) -> dict[str, Any]:
    moved = passes(mode, case.act, case.add)
    return {
        "seconds": summaries(samples),
        "floor": {
            "passes": moved,
            "seconds": summary(samples["copy"]).median * moved / COPY,
        },
        "ratios": {name: one.to_json() for name, one in ratios(samples, moved / COPY).items()},
    }


def _machine(rows: Sequence[Mapping[str, Any]], where: Device) -> dict[str, Any]:
    """The copy rate of the largest tensor, and of each."""
    rates = {
        row["shape"]: COPY * row["tensor_bytes"] / mode["seconds"]["copy"]["median"] / 1e9
        for row in rows
        for mode in (row["modes"]["forward"],)
    }
    largest = max(rows, key=lambda row: int(row["tensor_bytes"]))["shape"]
    return {
        "gpu": where.model,
        "last_level_cache_bytes": where.last_level_cache(),
        "copy_gb_per_second": {"largest": rates[largest], **rates},
    }
