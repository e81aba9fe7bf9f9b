"""Who is timed in `norms`: one layer, made in several ways, on the same numbers.

| name | what |
|---|---|
| ours | `spiritlevel.nn.batch.BatchNormAct*d`, with whichever kernels it chooses |
| eager | torch's BatchNorm, then the addition, then the activation, not in place |
| compile | the same under torch.compile, with static shapes, as one graph |

Each also with channels-last tensors, where the shape has such a layout. All take the same input,
residual and incoming gradient. The gradient is 0 where the output stands at a kink of an
activation: there two right answers round to different sides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.kernels.activations import ACTIVATIONS, activation
from spiritlevel.nn.batch import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d

__all__ = ["CHANNELS_LAST", "Case", "Peer", "layouts", "peers"]

CHANNELS_LAST = " channels-last"
"""What a name ends in."""
_OURS = {1: BatchNormAct1d, 2: BatchNormAct2d, 3: BatchNormAct3d}
_TORCHS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_KINKS = (0.0, 6.0, -3.0, 3.0)  # of relu, relu6, hardswish and hardsigmoid
_NEAR = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its input, (N, C) to (N, C, D, H, W)."""

    shape: tuple[int, ...]
    act: str = "relu"
    add: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.size}, bn{' + add' if self.add else ''} + {self.act}"


class Eager(nn.Module):
    """What a user writes: batch norm, addition, activation."""

    def __init__(self, bn: nn.Module, act: str) -> None:
        super().__init__()
        name, slope = activation(act)
        self.bn = bn
        self.act: Callable[[Tensor], Tensor] = ACTIVATIONS[name]
        if name == "leaky_relu":
            self.act = partial(F.leaky_relu, negative_slope=slope)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self.bn(x)
        return self.act(z if residual is None else z + residual)


class Peer:
    """A layer with its input, and what can be timed of it."""

    def __init__(
        self, name: str, layer: nn.Module, bn: Any, inputs: Sequence[Tensor], grad: Tensor
    ) -> None:
        self.name, self.layer, self.bn = name, layer, bn
        self.inputs, self.grad = inputs, grad
        self.leaves = [*inputs, bn.weight, bn.bias]

    def forward(self) -> Tensor:
        """As in a training step: with statistics of the batch, ready for a backward pass."""
        y: Tensor = self.layer(*self.inputs)
        return y

    def forward_and_backward(self) -> tuple[Tensor, ...]:
        y = self.forward()
        return y, *torch.autograd.grad(y, self.leaves, self.grad)

    @torch.no_grad()
    def eval(self) -> Tensor:
        y: Tensor = self.layer(*self.inputs)
        return y

    def outputs(self) -> dict[str, Tensor]:
        """All that a new layer computes in one step of training, and then in eval."""
        y, *grads = self.forward_and_backward()
        found = {"the output": y.detach()}
        of = [*("x", "the residual")[: len(self.inputs)], "the weight", "the bias"]
        found |= {f"the gradient of {n}": g for n, g in zip(of, grads, strict=True)}
        found["the running mean"] = self.bn.running_mean.clone()
        found["the running variance"] = self.bn.running_var.clone()
        self.layer.eval()
        found["the output in eval"] = self.eval()
        self.layer.train()
        return found


def layouts(shape: Sequence[int]) -> list[str]:
    """What names of this shape's peers end in."""
    return ["", CHANNELS_LAST] if len(shape) in _FORMATS else [""]


def peers(case: Case, *, compiled: bool) -> list[Peer]:
    """Eager first. All in training mode, with the same weights, and not yet run."""
    torch.manual_seed(0)
    dim, channels = max(1, len(case.shape) - 2), case.shape[1]
    made: Any = {"device": case.device}
    bn = _TORCHS[dim](channels, **made)
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.normal_(bn.bias)
    made["dtype"] = case.dtype
    inputs = [torch.randn(case.shape, **made).mul_(2).add_(1)]
    if case.add:
        inputs.append(torch.randn(case.shape, **made))
    grad = _away_from_kinks(torch.randn(case.shape, **made), bn, inputs)
    found = []
    for layout in layouts(case.shape):
        order = _FORMATS[len(case.shape)] if layout else torch.contiguous_format
        laid = [t.detach().contiguous(memory_format=order).requires_grad_() for t in inputs]
        there = grad.contiguous(memory_format=order)
        ours = _OURS[dim](channels, case.act, device=case.device)
        ours.load_state_dict(bn.state_dict())
        eager = Eager(copy.deepcopy(bn), case.act)
        found.append(Peer(f"eager{layout}", eager, eager.bn, laid, there))
        found.append(Peer(f"ours{layout}", ours, ours, laid, there))
        if compiled:
            other = Eager(copy.deepcopy(bn), case.act)
            graph: Any = torch.compile(other, dynamic=False, fullgraph=True)
            found.append(Peer(f"compile{layout}", graph, other.bn, laid, there))
    return found


def _away_from_kinks(grad: Tensor, bn: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    z = copy.deepcopy(bn)(inputs[0]).detach()
    if len(inputs) > 1:
        z += inputs[1]
    for kink in _KINKS:
        grad[(z - kink).abs() < _NEAR[z.dtype]] = 0
    return grad
