"""What the first training step of GhostNet costs, before and after its kernels are on disk.

Each of these is a fresh process: torch's layers; ours with an empty folder for kernels (cold); ours
again with the kernels that the cold one has left there (warm). A step is forward, loss, backward
and SGD. What a first step adds is its time less the median of the later ones; torch adds something,
too, and it stands beside ours. Torch and warm are measured in several processes, one after the
other, and are medians: a single process may be held up. Cold is measured once.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from spiritlevel.bench.child import in_a_child
from spiritlevel.bench.setting import Progress, share_of

__all__ = ["first_step"]

_LAYOUTS = ("contiguous", "channels-last")
_LATER = 2


def first_step(
    *,
    model: str = "ghostnet_100",
    batch: int = 32,
    size: int = 224,
    times: int = 3,
    threads: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Seconds, for JSON: layout -> torch, cold, warm -> first, later, added."""
    given = {"model": model, "batch": batch, "size": size, "threads": threads}
    order = ("cold", *("torch", "warm") * times)
    runs, done, found = len(_LAYOUTS) * len(order), 0, dict[str, Any]()
    for layout in _LAYOUTS:
        seen: dict[str, list[list[float]]] = {"torch": [], "cold": [], "warm": []}
        with TemporaryDirectory(prefix="spiritlevel-kernels-") as empty:
            for name in order:
                told = f"first step of {model}, {layout}, {name}"
                share_of(progress, done / runs, 1 / runs, told)
                asked = given | {"layout": layout, "ours": name != "torch"}
                seen[name].append(in_a_child(__name__, "steps", asked, {"NUMBA_CACHE_DIR": empty}))
                done += 1
            kept = len(list(Path(empty).rglob("*.nbc")))
        found[layout] = {
            name: _medians(each) | {"kernels_on_disk": 0 if name == "torch" else kept}
            for name, each in seen.items()
        }
    return given | {"ours": "surgery.fuse", "seconds": found}


def _medians(processes: list[list[float]]) -> dict[str, Any]:
    added = [steps[0] - median(steps[1:]) for steps in processes]
    return {
        "first": median(steps[0] for steps in processes),
        "later": median(median(steps[1:]) for steps in processes),
        "added": median(added),
        "added_each": added,
    }


def steps(model: str, batch: int, size: int, threads: int, layout: str, ours: bool) -> list[float]:
    """Seconds of the first training steps in this process. For a process of its own."""
    import torch
    from torch import nn

    from spiritlevel.kernels import tune_allocator
    from spiritlevel.models import create_model
    from spiritlevel.surgery import fuse

    tune_allocator()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = create_model(model, num_classes=10, norm=nn.BatchNorm2d)
    images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % 10
    if layout == "channels-last":
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    if ours:
        fuse(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    seconds = []
    for _ in range(1 + _LATER):
        start = perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(perf_counter() - start)
    return seconds
