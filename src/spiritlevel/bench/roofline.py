"""The floor of a training step: its arithmetic and its bytes, at rates that are measured beside it.

Arithmetic: what convolutions and linear layers multiply and add, forward, and twice that backward,
at the rate of a matrix product. Bytes, at the rate of a copy: each such layer reads its input and
writes its output; backward it reads both again and the gradient of its output, and writes that of
its input: each three times, with norms, activations, sums and concatenations done on the way. A
parameter moves eight times: read twice, its gradient written; and for SGD with momentum the three
are read and two of them written. The floor is the longer of both, as they may go on at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.bench.floor import COPY
from spiritlevel.bench.timing import Subject, summary
from spiritlevel.kernels import backend
from spiritlevel.models.counts import count

__all__ = ["COPIED", "PRODUCT", "Work", "rates", "told", "work"]

PRODUCT, COPIED = "matrix product", "copy"
"""Names of the subjects that the rates are of."""
_SIDE = 1024
_FLOATS = 1 << 25
"""128 MiB, which is more than most caches hold."""
_DIRECTIONS = 3  # forward; the gradients of input and weight
_TENSOR_PASSES, _PARAMETER_PASSES = 3, 8
_FLOAT = 4


@dataclass(frozen=True)
class Work:
    """Of a training step of a network in float32."""

    flops: int
    """Two a multiply-add."""
    bytes: int

    def seconds(self, samples: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """What each half takes at the rates of each round."""
        product, copied = 2 * _SIDE**3, COPY * _FLOAT * _FLOATS
        return {
            "flops": [self.flops / product * one for one in samples[PRODUCT]],
            "bytes": [self.bytes / copied * one for one in samples[COPIED]],
        }


def work(net: nn.Module, batch: int, size: int) -> Work:
    """Of `batch` images of 3 channels; a copy without values runs, on the meta device."""
    numbers = 0

    def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal numbers
        numbers += inputs[0].numel() + output.numel()

    shapes: Any = copy.deepcopy(net).to("meta").eval()
    for module in shapes.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook)
    with torch.no_grad(), backend.use("aten"):
        shapes(torch.empty(batch, 3, size, size, device="meta"))
    parameters = sum(p.numel() for p in net.parameters())
    multiply_adds = count(net, size).multiply_adds
    moved = _TENSOR_PASSES * numbers + _PARAMETER_PASSES * parameters
    return Work(2 * _DIRECTIONS * batch * multiply_adds, _FLOAT * moved)


def rates() -> list[Subject]:
    """To be timed in the same rounds as the steps."""
    a, b = (torch.randn(_SIDE, _SIDE) for _ in range(2))
    product = torch.empty(_SIDE, _SIDE)
    x = torch.randn(_FLOATS)
    to = torch.empty_like(x)
    return [
        Subject(PRODUCT, lambda: torch.mm(a, b, out=product)),
        Subject(COPIED, lambda: to.copy_(x)),
    ]


def told(samples: Mapping[str, list[float]]) -> dict[str, float]:
    """The rates, for JSON."""
    product, copied = (summary(samples[name]).median for name in (PRODUCT, COPIED))
    return {
        "gflop_per_second": 2e-9 * _SIDE**3 / product,
        "copy_gb_per_second": 1e-9 * COPY * _FLOAT * _FLOATS / copied,
    }
