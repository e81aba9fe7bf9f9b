"""Ghost batch normalization: the statistics of small batches inside a large one.

Hoffer et al. 2017, algorithm 1. Training, for a sample of group k:

    y = (x - mean_k) / sqrt(var_k + eps) * weight + bias

with the mean and the biased variance, per channel, over that group's samples and all positions.
Samples are dealt out in turn: of K whole groups, group k has samples k, k + K, k + 2K, ...; what is
left over at the end of the batch is one smaller last group.

The running statistics take one step a batch, towards the means and unbiased variances of all groups
weighted by their samples, so `running_mean` goes where plain batch normalization's goes. Eval is
plain batch normalization with them. The `state_dict` is that of torch's class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from spiritlevel.errors import UsageError

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d"]


class _GhostBatchNorm(_BatchNorm):
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        group_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
    ) -> None:
        if group_size < 1:
            raise UsageError(f"got group_size={group_size}; wanted 1 or more samples in a group")
        super().__init__(num_features, eps, momentum, affine)
        self.group_size = group_size

    def forward(self, input: Tensor) -> Tensor:
        """Raises UsageError where a group has a single value per channel, hence no variance."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        self._check_groups(input)
        momentum = self._count_batch()
        groups, rest = divmod(len(input), self.group_size)
        if groups == 0 or rest == 0:
            output, mean, var = self._normalize(input, max(groups, 1), momentum)
        else:
            last = rest / len(input)
            output, mean, var = self._normalize(input[:-rest], groups, momentum)
            last_output, last_mean, last_var = self._normalize(input[-rest:], 1, momentum)
            output = torch.cat([output, last_output])
            mean, var = mean.lerp(last_mean, last), var.lerp(last_var, last)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return output

    def _normalize(self, x: Tensor, groups: int, momentum: float) -> tuple[Tensor, Tensor, Tensor]:
        """x (g * groups, C, *) seen as (g, groups * C, *): one call normalises all groups.

        Returns the output and, averaged over the groups, the running mean (C,) and variance (C,).
        """
        weight = self.weight.repeat(groups) if self.affine else None
        bias = self.bias.repeat(groups) if self.affine else None
        mean, var = self.running_mean.repeat(groups), self.running_var.repeat(groups)
        grouped = x.reshape(len(x) // groups, groups * x.shape[1], *x.shape[2:])
        output = F.batch_norm(grouped, mean, var, weight, bias, True, momentum, self.eps)
        return output.reshape(x.shape), mean.view(groups, -1).mean(0), var.view(groups, -1).mean(0)

    def _count_batch(self) -> float:
        """Returns the weight of this batch; momentum None asks for the average of all batches."""
        self.num_batches_tracked.add_(1)
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def _check_groups(self, x: Tensor) -> None:
        smallest = len(x) % self.group_size or self.group_size
        if smallest * x.shape[2:].numel() < 2:
            raise UsageError(
                f"got a batch of shape {tuple(x.shape)} in groups of {self.group_size}: one "
                "has a single value per channel, hence no variance. Wanted two or more; drop the "
                "last batch of the loader or choose another group size"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_size={self.group_size}"  # type: ignore[no-untyped-call]


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """Ghost batch normalization of (N, C) or (N, C, L), as this file's head has it."""


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """Ghost batch normalization of (N, C, H, W), as this file's head has it."""


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """Ghost batch normalization of (N, C, D, H, W), as this file's head has it."""
