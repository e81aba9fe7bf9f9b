"""tools/stages.py FILE: what each pass of a Ghost module takes, beside its floor, as JSON.

For the modules of GhostNet 1.0x on 32 images of 224x224, one after another, medians of a few calls
in a quiet process. The floor of a pass is the longer of its flops, at the rate of a matrix product,
and its bytes, at the rate of a copy, both measured here. Beside them the depthwise
convolutions that halve a map, ours and torch's.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.kernels import ghost, tune_allocator
from spiritlevel.kernels.convolutions import depthwise
from spiritlevel.models.ghost import GhostModule

MODEL, SIZE, BATCH, CALLS = "ghostnet_100", 224, 32, 7
PASSES = ("1x1 convolution and statistics", "both halves", "back through both halves")
PASSES += ("back through the 1x1 convolution",)


def main(file: str) -> None:
    tune_allocator()
    rates = product_rate(), copy_rate()
    rows = [measured(shape, channels, n, rates) for (shape, channels), n in shapes().items()]
    found = {
        "command": "tools/stages.py",
        "model": f"{MODEL}, {BATCH} images of {SIZE}x{SIZE}",
        "threads": torch.get_num_threads(),
        "gflop_per_second": rates[0] / 1e9,
        "copy_gb_per_second": rates[1] / 1e9,
        "passes": PASSES,
        "modules": rows,
        "halving": [halved(conv, x, rates[1]) for conv, x in strided()],
    }
    Path(file).write_text(json.dumps(found, indent=1) + "\n")


def shapes() -> Counter[tuple[tuple[int, ...], int]]:
    """Input and half of the output's channels of each Ghost module, and how many are so."""
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    model = sl.create_model(MODEL).eval()
    for module in model.modules():
        if isinstance(module, GhostModule):
            half = module.primary_conv[0].out_channels
            module.register_forward_pre_hook(
                lambda _m, given, half=half: found.update([((BATCH, *given[0].shape[1:]), half)])
            )
    with torch.no_grad():
        model(torch.randn(1, 3, SIZE, SIZE))
    return found


def measured(shape: tuple[int, ...], C: int, n: int, rates: tuple[float, float]) -> dict[str, Any]:
    N, inner, H, W = shape
    x = last(torch.randn(shape))
    weight, taps = torch.randn(C, inner, 1, 1) / inner**0.5, torch.randn(C, 1, 3, 3) / 3
    norm = ghost.Norm(torch.ones(C), torch.zeros(C), 1e-5)
    y, before = ghost.product(x, weight, norm)
    out, found = ghost.forward(y, norm, taps, norm, "relu", None, before)
    grad = torch.randn_like(out)
    through, *grads = ghost.backward(grad, y, norm, taps, norm, "relu", found)
    reached = grads[0], grads[1]
    calls: list[tuple[Callable[[], Any], int, int]] = [
        (lambda: ghost.product(x, weight, norm), 2 * inner * C, inner + C),
        (lambda: ghost.forward(y, norm, taps, norm, "relu", None, before), 36 * C, 4 * C),
        (lambda: ghost.backward(grad, y, norm, taps, norm, "relu", found), 72 * C, 6 * C),
        (
            lambda: ghost.product_back(through, x, weight, y, norm, found[:2], reached, True),
            4 * inner * C,
            2 * C + 2 * inner,
        ),
    ]
    rows = N * H * W
    return {
        "input": shape,
        "half": C,
        "modules": n,
        "seconds": [seconds(call) for call, _, _ in calls],
        "floor": [max(rows * f / rates[0], rows * 4 * b / rates[1]) for _, f, b in calls],
    }


def strided() -> list[tuple[nn.Conv2d, torch.Tensor]]:
    """The depthwise convolutions that halve a map, each with an input."""
    found: list[tuple[nn.Conv2d, torch.Tensor]] = []
    model = sl.create_model(MODEL).eval()
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups > 1 and conv.stride == (2, 2):
            conv.register_forward_pre_hook(
                lambda m, given: found.append((m, last(torch.randn(BATCH, *given[0].shape[1:]))))
            )
    with torch.no_grad():
        model(torch.randn(1, 3, SIZE, SIZE))
    return found


def halved(conv: nn.Conv2d, x: torch.Tensor, rate: float) -> dict[str, Any]:
    """Seconds forward and back, ours and torch's, and those of the bytes."""
    weight, pad, inputs = conv.weight, conv.padding[0], (x.requires_grad_(), conv.weight)

    def ours() -> torch.Tensor:
        return depthwise(x, weight, (2, 2), (pad, pad))

    def theirs() -> torch.Tensor:
        return F.conv2d(x, weight, None, 2, pad, 1, conv.groups)

    def back(y: torch.Tensor) -> Callable[[], Any]:
        grad = torch.randn_like(y)
        return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)

    moved = [4 * (x.numel() + ours().numel()), 4 * (2 * x.numel() + ours().numel())]
    return {
        "input": tuple(x.shape),
        "kernel": conv.kernel_size[0],
        "ours": [seconds(ours), seconds(back(ours()))],
        "torch": [seconds(theirs), seconds(back(theirs()))],
        "floor": [each / rate for each in moved],
    }


def last(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def seconds(call: Callable[[], Any]) -> float:
    call()
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken)


def product_rate() -> float:
    a, b = torch.randn(2, 1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ b)


def copy_rate() -> float:
    """Bytes read and written a second."""
    a = torch.randn(1 << 25)
    b = torch.empty_like(a)
    return 2 * a.nbytes / seconds(lambda: b.copy_(a))


if __name__ == "__main__":
    main(*sys.argv[1:])
