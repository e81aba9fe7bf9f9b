"""What a layer has learned, and how it learns in one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.probe.reading import spread

__all__ = ["Learning", "learned"]


class Learning:
    """One layer's gradients and parameters just before a step; `after` tells what the step did.

    The gradient is that of all of its own parameters, exactly; how far they moved is taken from at
    most 2,048 values of each, so that no model is copied whole.
    """

    @torch.no_grad()
    def __init__(self, layer: nn.Module) -> None:
        own = layer.parameters(recurse=False)
        self.parameters = [p for p in own if not is_lazy(p) and p.numel()]
        self.before = [spread(p.detach()) for p in self.parameters]
        self.gradient: Tensor | None = None

    @torch.no_grad()
    def read_gradient(self, optimizer: Any) -> None:
        if self.gradient is not None:  # a closure may run several times
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            norm = torch.stack([_norm(g) for g in gradients]).norm()
            scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales by itself
            self.gradient = norm if scale is None else norm / scale.to(norm)

    @torch.no_grad()
    def after(self) -> dict[str, Tensor]:
        """`grad_norm` and `update_ratio`, ||dw|| / ||w||."""
        found = {} if self.gradient is None else {"grad_norm": self.gradient}
        if self.parameters:
            old = torch.cat(self.before)
            new = torch.cat([spread(p.detach()) for p in self.parameters])
            found["update_ratio"] = ((new - old).norm() / old.norm()).nan_to_num(posinf=torch.nan)
        return found


def _norm(gradient: Tensor) -> Tensor:
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    found: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
    return found.double() if found.device.type != "mps" else found


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
