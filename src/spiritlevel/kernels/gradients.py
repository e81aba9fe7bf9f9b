"""What autograd functions share on the way back: when torch takes over, and how gradients go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["differentiable", "laid_out", "left_to_torch", "wanted"]


def left_to_torch(grad: Tensor) -> bool:
    """Whether it needs torch's own operations: it is to have gradients itself, or stands for many.

    Many at once, as in a Jacobian, have no memory to read.
    """
    functorch = torch._C._functorch
    batched = functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)
    return torch.is_grad_enabled() or batched


def laid_out(t: Tensor, x: Tensor) -> Tensor:
    """t, or a copy of it, of the type of x and channels-last."""
    return t.to(x.dtype).resolve_neg().contiguous(memory_format=torch.channels_last)


def wanted(found: Sequence[Tensor | None], wants: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Those that somebody wants, and None for the others."""
    return tuple(t if want else None for t, want in zip(found, wants, strict=True))


def differentiable(
    out: Tensor, inputs: Sequence[Any], wants: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs that want one, which have gradients themselves."""
    leaves = [t for t, want in zip(inputs, wants, strict=True) if want]
    if not leaves:
        return (None,) * len(inputs)
    found = iter(torch.autograd.grad(out, leaves, grad, create_graph=True, allow_unused=True))
    return tuple(next(found) if want else None for want in wants)
