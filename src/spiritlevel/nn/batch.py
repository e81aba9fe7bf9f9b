"""Batch normalization with torch's numbers and our kernels, alone or with what follows it.

Training, for each channel over all axes but 1 (Ioffe and Szegedy 2015, algorithm 1):

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual)

with the batch's mean and biased variance, both accumulated in float64 from blocks in float32. The
running mean and the running variance, unbiased, each go towards the batch's by `momentum`; eval
takes them in the batch's place (algorithm 2). Input (N, C, *) in float32, float64 or bfloat16;
`kernels.backend` says what is done with others.

Each class is a subclass of torch's, with its constructor, `state_dict`, errors and buffers, so that
tools which look for batch norms find ours. In graphs that leave Python (torch.export, ONNX,
torch.jit.trace) the layers are torch's own operations.
"""

from __future__ import annotations

import sys
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend, ops
from spiritlevel.kernels.activations import Activation
from spiritlevel.nn.as_timm import TimmsWords, read
from spiritlevel.nn.observe import Statistics, tell

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "check_eps",
]

_IDENTITY = Activation("identity")


class _Fused(_BatchNorm):
    act: Activation = _IDENTITY
    tells_observers = True

    def _beyond_torchs(self) -> str:
        """What torch's own class of this name does not do."""
        return ""

    @property
    def qconfig(self) -> Any:
        """Read by torch's convert_sync_batchnorm, which makes torch's own layer of a subclass."""
        dropped = self._beyond_torchs()
        if dropped and sys._getframe(1).f_code.co_name == "convert_sync_batchnorm":
            raise UsageError(
                f"got a {type(self).__name__} in torch's convert_sync_batchnorm, which would drop "
                f"its {dropped}; wanted torch's own batch norm. Convert before layers are replaced"
            )
        if "qconfig" in self.__dict__:
            return self.__dict__["qconfig"]
        raise AttributeError(f"{type(self).__name__} has no qconfig")

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        self.__dict__["qconfig"] = value

    def forward(self, input: Tensor) -> Tensor:
        return self._normalized(input, None)

    def _normalized(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if isinstance(x, Proxy):  # torch.fx is tracing: one node, as torch's own layers are
            return _as_leaf(self, x, residual)
        y, statistics = self.passed(x, residual, self.act)
        tell(self, x, y, statistics)
        return y

    def passed(
        self, x: Tensor, residual: Tensor | None, act: Activation
    ) -> tuple[Tensor, Statistics | None]:
        """A pass with `act` after it, of which no observer is told, and the batch's statistics."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        running: Any = (self.running_mean, self.running_var)
        track = self.training and self.track_running_stats
        training = self.training or (running[0] is None and running[1] is None)
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        chosen = _kernels(x, residual, training, weight, bias, *running)
        if (running[0] is None) is not (running[1] is None) or self.eps < 0:
            chosen = "aten"  # which says what is wrong
        if track and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight, bias = self._affine(x, chosen, weight, bias)
        if chosen == "aten":
            return self._plain(x, residual, act, weight, bias, training, track)
        if training:
            _check_batch(x, self.eps)
        taken = None if training else running
        follows = self._follows(*running) if track and running[0] is not None else None
        given = x, weight, bias, residual, act, self.eps, taken, follows
        y, mean, var = ops.run(chosen, *given)
        return y, (lambda: (mean, var)) if training else None

    def _affine(
        self, x: Tensor, kernels: str, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The weight and the bias that x gets, of those that the layer has."""
        return weight, bias

    def _plain(
        self,
        x: Tensor,
        residual: Tensor | None,
        act: Activation,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        track: bool,
    ) -> tuple[Tensor, Statistics | None]:
        momentum, seen = self.momentum, self.num_batches_tracked if track else None
        if momentum is None:
            momentum = 0.0 if seen is None else 1.0 / float(seen)
        given = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if given else (None, None)
        y = F.batch_norm(x, mean, var, weight, bias, training, momentum, self.eps)
        y = act(y if residual is None else y + residual)
        taken = training and x.numel() > 0
        return y, (lambda: ops.statistics_of(x)) if taken else None

    def _follows(self, mean: Tensor, var: Tensor) -> ops.Running | None:
        """The running statistics, and the share of this batch in them."""
        share = self.momentum
        if share is None:
            seen = self.num_batches_tracked
            if seen is None:
                return None
            # A float, as torch takes it; a graph cannot know it beforehand.
            share = 1.0 / (seen if torch.compiler.is_compiling() else float(seen))  # type: ignore[assignment]
        return mean, var, share  # type: ignore[return-value]


class BatchNorm1d(_Fused, nn.BatchNorm1d):
    """Batch normalization of (N, C) or (N, C, L), as `nn.batch` has it."""


class BatchNorm2d(_Fused, nn.BatchNorm2d):
    """Batch normalization of (N, C, H, W), as `nn.batch` has it."""


class BatchNorm3d(_Fused, nn.BatchNorm3d):
    """Batch normalization of (N, C, D, H, W), as `nn.batch` has it."""


class LazyBatchNorm1d(_Fused, nn.LazyBatchNorm1d):
    """A `BatchNorm1d` that takes its `num_features` from its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Fused, nn.LazyBatchNorm2d):
    """A `BatchNorm2d` that takes its `num_features` from its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Fused, nn.LazyBatchNorm3d):
    """A `BatchNorm3d` that takes its `num_features` from its first input."""

    cls_to_become = BatchNorm3d


class _FusedAct(_Fused):
    """`timms_words` are those of timm's class of this name, as timm's models call it."""

    def __init__(
        self,
        num_features: int,
        act: str | Activation = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        **timms_words: Unpack[TimmsWords],
    ) -> None:
        act = read(type(self).__name__, act, timms_words)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._normalized(input, residual)

    def _beyond_torchs(self) -> str:
        return f"activation ({self.act})"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act}"  # type: ignore[no-untyped-call]


class BatchNormAct1d(_FusedAct, nn.BatchNorm1d):
    """act(BatchNorm1d(x) + residual) in one pass, as `nn.batch` has it."""


class BatchNormAct2d(_FusedAct, nn.BatchNorm2d):
    """act(BatchNorm2d(x) + residual) in one pass, as `nn.batch` has it."""


class BatchNormAct3d(_FusedAct, nn.BatchNorm3d):
    """act(BatchNorm3d(x) + residual) in one pass, as `nn.batch` has it."""


def _kernels(
    x: Tensor, residual: Tensor | None, training: bool, *of_channels: Tensor | None
) -> str:
    if torch.compiler.is_compiling():
        # In eval torch.compile merges plain operations with what is around them.
        return "cpu" if training and backend.traced(x, residual, of_channels[0]) else "aten"
    chosen = backend.choose(x, residual, *of_channels)
    backend.ran[chosen] += 1
    return chosen


def _check_batch(x: Tensor, eps: float) -> None:
    """As torch's own functional does, with its texts."""
    if x.shape[0] * x.shape[2:].numel() == 1:
        F._verify_batch_size(x.size())  # type: ignore[attr-defined]
    check_eps(eps)


def check_eps(eps: float) -> None:
    """Raises ValueError, with torch's text."""
    if eps <= 0.0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")


def _as_leaf(layer: nn.Module, x: Any, residual: Any) -> Any:
    path = x.tracer.path_of_module(layer)
    return x.tracer.create_proxy(
        "call_module", path, (x,) if residual is None else (x, residual), {}
    )
