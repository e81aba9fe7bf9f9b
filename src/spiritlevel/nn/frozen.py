"""Batch normalization that no longer learns and no longer counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.kernels.activations import Activation, activation
from spiritlevel.nn.observe import tell

__all__ = ["FrozenBatchNorm", "FrozenBatchNormAct"]


class FrozenBatchNorm(nn.Module):
    """(x - running_mean) / sqrt(running_var + eps) * weight + bias, in training as in eval.

    Frozen are all four: `weight`, `bias`, `running_mean` and `running_var` are buffers, which no
    optimizer sees and no forward pass writes; `train()` changes nothing. Only `load_state_dict` and
    the user's own assignment do. Gradients flow through to `x` and what lies before it. Fresh, it
    divides by sqrt(1 + eps).

    Input (N, C, *) of any rank and float type; this is eval in algorithm 2 of Ioffe and Szegedy
    2015. The `state_dict` has the keys of torch's batch normalization and loads one. It is no
    subclass of torch's class, so tools that reset running statistics
    (`torch.optim.swa_utils.update_bn`) pass it by.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    _version = 2
    tells_observers = True

    def __init__(
        self, num_features: int, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            full = torch.full((num_features,), float(value), device=device, dtype=dtype)
            self.register_buffer(name, full)
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        key = f"{prefix}num_batches_tracked"
        if (local_metadata.get("version") or 0) < 2 and key not in state_dict:
            state_dict[key] = self.num_batches_tracked  # files of before 2018 have none
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def forward(self, x: Tensor) -> Tensor:
        y = self._normalized(x)
        tell(self, x, y)
        return y

    def _normalized(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class FrozenBatchNormAct(FrozenBatchNorm):
    """act(FrozenBatchNorm(x) + residual): what `convert` makes of a `BatchNormAct2d`.

    `residual` has the shape of x, or one that is spread over it. Raises UsageError for an
    activation that there is not.
    """

    act: Activation

    def __init__(
        self,
        num_features: int,
        act: str | Activation = "relu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, device, dtype)
        self.act = activation(act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self._normalized(x)
        y = self.act(z if residual is None else z + residual)
        tell(self, x, y)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act}"
