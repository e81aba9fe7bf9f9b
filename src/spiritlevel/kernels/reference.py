"""Each operation as the paper writes it, in plain torch: the oracle for everything faster."""

from __future__ import annotations

from torch import Tensor

__all__ = ["batch_norm"]


def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, for x (N, C) or (N, C, *).

    Mean and biased variance are taken over every axis but 1, in the dtype of `x`; or they are the
    `statistics`, each (C,), as in eval. Unlike torch's, `eps=0` is allowed, which the exact
    identities of Ioffe & Szegedy 2015, section 3.3, need. Differentiable twice.
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    if statistics is None:
        centred = x - x.mean(axes, keepdim=True)
        var = centred.square().mean(axes, keepdim=True)
    else:
        mean, var = (s.to(x.dtype).view(shape) for s in statistics)
        centred = x - mean
    y = centred / (var + eps).sqrt()
    if weight is not None:
        y = y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)
