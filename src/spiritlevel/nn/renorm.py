"""Batch renormalization: the batch normalizes, corrected towards what eval will do.

Ioffe 2017, algorithm 1. Training, for each channel over all axes but 1:

    y = ((x - mean) / sqrt(var + eps) * r + d) * weight + bias
    r = clip(sqrt(var + eps) / sqrt(running_var + eps), 1 / r_max, r_max)
    d = clip((mean - running_mean) / sqrt(running_var + eps), -d_max, d_max)

with the batch's mean and biased variance, and the running ones from before this batch. No gradient
goes through r and d; through mean and var it does. Where neither is clipped y is what eval would
give; at r = 1 and d = 0 it is batch normalization.

The bounds follow the number of batches seen (section 4): r_max = 1 and d_max = 0 for the first
`warmup` batches, then both grow in proportion to the batches, d_max until 5 and r_max until 8 times
`warmup`. The paper's 5,000, 25,000 and 40,000 are the default; a run of another length wants
another `warmup`, and 0 gives the full bounds at once.

The running variance is torch's, the unbiased one of each batch, where the paper averages standard
deviations: so `state_dict` and eval are those of torch's class, and checkpoints go either way.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.kernels import ops
from spiritlevel.nn.batch import _Fused

__all__ = ["BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d"]

_FULL_R, _FULL_D = 8, 5
"""Times the warm-up: when the bounds no longer grow."""


class _Renorm(_Fused):
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5000,
    ) -> None:
        """Raises UsageError for bounds that exclude r = 1 and d = 0, or no running statistics."""
        if not (1 <= r_max < math.inf and 0 <= d_max < math.inf and warmup >= 0):
            raise UsageError(
                f"got r_max={r_max}, d_max={d_max}, warmup={warmup}; wanted a finite r_max of 1 or "
                "more, and a finite d_max and a warmup of 0 or more"
            )
        if not track_running_stats:
            raise UsageError(
                "got track_running_stats=False; batch renormalization corrects towards the running "
                "statistics: leave it True, or take BatchNorm"
            )
        super().__init__(num_features, eps, momentum, affine, True, device, dtype, bias=bias)
        self.r_max, self.d_max, self.warmup = r_max, d_max, warmup

    def _affine(
        self, x: Tensor, kernels: str, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(xhat r + d) weight + bias = xhat (r weight) + (d weight + bias)."""
        if not self.training or self._warms_up() or x.shape[1] != len(self.running_mean):
            return weight, bias  # torch's own operations say that the channels are too many
        kind = self.running_var.dtype if weight is None else weight.dtype
        r, d = (each.to(kind) for each in self._corrections(x, kernels))
        if weight is not None:
            r, d = r * weight, d * weight
        return r, d if bias is None else d + bias

    def _warms_up(self) -> bool:
        """Whether r is 1 and d is 0, as far as that is known without waiting for a device."""
        seen = self.num_batches_tracked
        return not torch.compiler.is_compiling() and seen.is_cpu and int(seen) <= self.warmup

    @torch.no_grad()
    def _corrections(self, x: Tensor, kernels: str) -> tuple[Tensor, Tensor]:
        """r and d, (C,)."""
        mean, var = ops.statistics_of(x if kernels in ops.OURS else x.to(_wider(x)), kernels)
        deviation = (self.running_var + self.eps).sqrt()
        r = (var + self.eps).sqrt() / deviation
        d = (mean - self.running_mean) / deviation
        r_max = 1 + (self.r_max - 1) * self._grown(_FULL_R, var.dtype)
        d_max = self.d_max * self._grown(_FULL_D, var.dtype)
        return r.clamp(1 / r_max, r_max), d.clamp(-d_max, d_max)

    def _grown(self, full: int, kind: torch.dtype) -> Tensor:
        """The share of its growth that a bound has behind it: 0 to 1."""
        seen, warmup = self.num_batches_tracked, self.warmup
        if warmup == 0:
            return torch.ones_like(seen, dtype=kind)
        return ((seen - warmup).to(kind) / ((full - 1) * warmup)).clamp(0, 1)

    def _beyond_torchs(self) -> str:
        return "correction"

    def extra_repr(self) -> str:
        own = f"r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}"
        return f"{super().extra_repr()}, {own}"  # type: ignore[no-untyped-call]


def _wider(x: Tensor) -> torch.dtype:
    """What means are taken in: a half has too few digits for the difference of two."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


class BatchRenorm1d(_Renorm, nn.BatchNorm1d):
    """Batch renormalization of (N, C) or (N, C, L), as `nn.renorm` has it."""


class BatchRenorm2d(_Renorm, nn.BatchNorm2d):
    """Batch renormalization of (N, C, H, W), as `nn.renorm` has it."""


class BatchRenorm3d(_Renorm, nn.BatchNorm3d):
    """Batch renormalization of (N, C, D, H, W), as `nn.renorm` has it."""
