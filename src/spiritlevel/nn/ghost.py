"""Ghost batch normalization: the statistics of small batches inside a large one.

Hoffer et al. 2017, algorithm 1. Training, for a sample of group k:

    y = (x - mean_k) / sqrt(var_k + eps) * weight + bias

with the mean and the biased variance, per channel, over that group's samples and all positions.
Samples are dealt out in turn: of K whole groups, group k has samples k, k + K, k + 2K, ...; what is
left over at the end of the batch is one smaller last group.

The running statistics take one step a batch, towards the means and unbiased variances of all groups
weighted by their samples, so `running_mean` goes where plain batch normalization's goes. Eval is
plain batch normalization with them. The `state_dict` is that of torch's class.

An observer is told mean and biased variance of the whole batch, put together from the groups': the
mean of their means, and the mean of their variances plus the variance of their means.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from spiritlevel.errors import UsageError
from spiritlevel.kernels import ops
from spiritlevel.nn.batch import _Fused, check_eps
from spiritlevel.nn.observe import tell

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d"]


class _GhostBatchNorm(_Fused):
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if group_size < 1:
            raise UsageError(f"got group_size={group_size}; wanted 1 or more samples in a group")
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.group_size = group_size

    def forward(self, input: Tensor) -> Tensor:
        """Raises UsageError where a group has a single value per channel, hence no variance.

        ValueError for an eps that is not above 0, in training.
        """
        if not self.training or isinstance(input, Proxy):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        self._check_groups(input)
        check_eps(self.eps)
        self.num_batches_tracked.add_(1)
        groups, rest = divmod(len(input), self.group_size)
        if groups == 0 or rest == 0:
            output, *moments = self._normalize(input, max(groups, 1))
        else:
            dealt, last = torch.split(input, [len(input) - rest, rest])
            output, *moments = self._normalize(dealt, groups)
            last_output, *last_moments = self._normalize(last, 1)
            output = torch.cat([output, last_output])
            moments = [torch.cat(pair) for pair in zip(moments, last_moments, strict=True)]
        self._conclude(input, output, *moments)
        return output

    def _normalize(self, x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the means and biased variances of the groups, (groups, C)."""
        if groups == 1:
            y, mean, var = ops.batch_norm_act(x, self.weight, self.bias, eps=self.eps)
            return y, mean[None], var[None]
        if x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
            return self._at_once(x, groups)
        if ops.takes_groups(x, self.weight, self.bias, groups):
            return ops.batch_norm_act(x, self.weight, self.bias, eps=self.eps, groups=groups)
        return self._one_by_one(x, groups)

    def _at_once(self, x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """x (g * groups, C, *) seen as (g, groups * C, *): one call normalises all groups."""
        weight = self.weight.repeat(groups) if self.affine else None
        bias = self.bias.repeat(groups) if self.affine else None
        grouped = x.reshape(len(x) // groups, groups * x.shape[1], *x.shape[2:])
        y, mean, var = ops.batch_norm_act(grouped, weight, bias, eps=self.eps)
        return y.reshape(x.shape), mean.view(groups, -1), var.view(groups, -1)

    def _one_by_one(self, x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same in channels-last, where groups of channels would have to be transposed.

        The samples of a group are brought together, and apart again: copies of whole images.
        """
        channels_last = x.movedim(1, -1)
        dealt = channels_last.view(-1, groups, *channels_last.shape[1:]).transpose(0, 1)
        done = [
            ops.batch_norm_act(each.movedim(-1, 1), self.weight, self.bias, eps=self.eps)
            for each in dealt.contiguous().unbind()
        ]
        y, mean, var = zip(*done, strict=True)
        whole = torch.stack([each.movedim(1, -1) for each in y], dim=1).flatten(0, 1)
        return whole.movedim(-1, 1), torch.stack(mean), torch.stack(var)

    @torch.no_grad()
    def _conclude(self, x: Tensor, y: Tensor, means: Tensor, variances: Tensor) -> None:
        """One step of the running statistics; then who listens is told."""
        values, (whole, rest) = x.numel() // x.shape[1], divmod(len(x), self.group_size)
        shares = [size / len(x) for size in [self.group_size] * whole + [rest] * (rest > 0)]
        unbiased = [share * (share * values) / (share * values - 1) for share in shares]
        of_groups = means.new_tensor([shares, unbiased])[..., None]
        mean, var = (means * of_groups[0]).sum(0), (variances * of_groups[1]).sum(0)
        momentum = self._momentum()
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            # Autograd is not told, nor does torch tell it of its own layers.
            here = running if torch.compiler.is_compiling() else running.data
            here.lerp_(batch.to(running.dtype), momentum)
        tell(self, x, y, lambda: _whole(means, variances, of_groups[0]))

    def _momentum(self) -> Any:
        """The weight of this batch; momentum None asks for the average of all batches."""
        if self.momentum is not None:
            return self.momentum
        return self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()

    def _check_groups(self, x: Tensor) -> None:
        smallest = len(x) % self.group_size or self.group_size
        if smallest * x.shape[2:].numel() < 2:
            raise UsageError(
                f"got a batch of shape {tuple(x.shape)} in groups of {self.group_size}: one "
                "has a single value per channel, hence no variance. Wanted two or more; drop the "
                "last batch of the loader or choose another group size"
            )

    def _beyond_torchs(self) -> str:
        return "groups"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_size={self.group_size}"  # type: ignore[no-untyped-call]


def _whole(means: Tensor, variances: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    mean = (means * shares).sum(0)
    return mean, ((variances + (means - mean).square()) * shares).sum(0)


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """Ghost batch normalization of (N, C) or (N, C, L), as `nn.ghost` has it."""


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """Ghost batch normalization of (N, C, H, W), as `nn.ghost` has it."""


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """Ghost batch normalization of (N, C, D, H, W), as `nn.ghost` has it."""
