"""RMSprop as TensorFlow has it, which published recipes of mobile networks rely on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["RMSpropTF"]


class RMSpropTF(Optimizer):
    """For each parameter p with gradient g, its weight decay added:

        s <- s + (1 - rho) (g^2 - s)            s starts at 1
        m <- momentum m + lr g / sqrt(s + eps)
        p <- p - m

    torch.optim.RMSprop starts s at 0, adds eps outside the root, and has the rate outside of m:
    with eps = 0.001 that is another optimizer. `params` are as torch's optimizers take them.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        rho: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._descend(p, group)
        return loss

    def _descend(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["square"], state["momentum"] = torch.ones_like(p), torch.zeros_like(p)
        g = p.grad.add(p, alpha=group["weight_decay"])  # type: ignore[union-attr]
        state["square"].lerp_(g * g, 1 - group["rho"])
        size = (state["square"] + group["eps"]).sqrt_()
        state["momentum"].mul_(group["momentum"]).addcdiv_(g, size, value=group["lr"])
        p.sub_(state["momentum"])
