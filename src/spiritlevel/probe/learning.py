"""What a layer has learned, and how it learns in one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.probe.reading import spread

__all__ = ["Learning", "learned"]


class Learning:
    """Gradients and parameters just before an optimizer's step; `after` tells what it did.

    The gradient is that of all of a layer's own parameters, exactly; how far they moved is taken
    from at most 4,096 values of each, so that no model is copied whole.
    """

    @torch.no_grad()
    def __init__(self, layers: dict[str, nn.Module], optimizer: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales by itself
        self._parameters = {
            path: [p for p in layer.parameters(recurse=False) if not is_lazy(p) and p.numel()]
            for path, layer in layers.items()
        }
        self._before = {
            path: [spread(p.detach()) for p in parameters]
            for path, parameters in self._parameters.items()
        }
        self._gradient: dict[str, Tensor] = {}
        for path, parameters in self._parameters.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                norms = torch.stack([_norm(g).double() for g in gradients]).norm()
                self._gradient[path] = norms if scale is None else norms / scale.to(norms)

    @torch.no_grad()
    def after(self) -> dict[str, dict[str, Tensor]]:
        """By path `grad_norm` and `update_ratio`, ||dw|| / ||w||."""
        found: dict[str, dict[str, Tensor]] = {}
        for path, parameters in self._parameters.items():
            row = found.setdefault(path, {})
            if path in self._gradient:
                row["grad_norm"] = self._gradient[path]
            if parameters:
                old = torch.cat(self._before[path])
                new = torch.cat([spread(p.detach()) for p in parameters])
                row["update_ratio"] = ((new - old).norm() / old.norm()).nan_to_num(posinf=torch.nan)
        return found


def _norm(gradient: Tensor) -> Tensor:
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    found: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
    return found


@torch.no_grad()
def learned(norm: nn.Module) -> dict[str, Tensor]:
    """Least, mean and largest gamma and beta, and the batches that it has counted."""
    found: dict[str, Tensor] = {}
    for name, told in (("weight", "gamma"), ("bias", "beta")):
        value = getattr(norm, name, None)
        if isinstance(value, Tensor) and not is_lazy(value) and value.numel():
            value = value.detach().float()
            found[f"{told}_min"], found[f"{told}_max"] = value.aminmax()
            found[f"{told}_mean"] = value.mean()
    tracked = getattr(norm, "num_batches_tracked", None)
    if isinstance(tracked, Tensor):
        found["batches_tracked"] = tracked.detach()
    return found
