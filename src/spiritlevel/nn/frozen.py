"""Batch normalization that no longer learns and no longer counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FrozenBatchNorm"]


class FrozenBatchNorm(nn.Module):
    """(x - running_mean) / sqrt(running_var + eps) * weight + bias, in training as in eval.

    Frozen are all four: `weight`, `bias`, `running_mean` and `running_var` are buffers, which no
    optimizer sees and no forward pass writes; `train()` changes nothing. Only `load_state_dict` and
    the user's own assignment do. Gradients flow through to `x` and what lies before it. Fresh, it
    divides by sqrt(1 + eps).

    Input (N, C, *) of any rank. The `state_dict` has the keys of torch's batch normalization and
    loads one. It is no subclass of torch's class, so tools that reset running statistics
    (`torch.optim.swa_utils.update_bn`) pass it by.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"
