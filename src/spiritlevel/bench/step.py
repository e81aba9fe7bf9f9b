"""A training step on one batch: forward, cross entropy, backward, SGD with momentum."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from spiritlevel.bench.memory import peak_bytes
from spiritlevel.kernels import backend

__all__ = ["Step"]


class Step:
    """Called, it takes a step.

    `kernels` are those of `kernels.use`, where not those that are asked for anyway; `half`: forward
    and loss under autocast to bfloat16. `fused` is SGD's.
    """

    def __init__(
        self,
        net: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        kernels: str | None = None,
        half: bool = False,
        fused: bool | None = None,
    ) -> None:
        self.net, self.images, self.labels = net, images, labels
        self.kernels, self.half = kernels, half
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=fused)

    def __call__(self) -> dict[str, Tensor]:
        """The logits and the loss before the step."""
        with ExitStack() as stack:
            if self.kernels is not None:
                stack.enter_context(backend.use(self.kernels))
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.half):
                logits = self.net(self.images)
                loss = nn.functional.cross_entropy(logits, self.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return {"the logits": logits.detach(), "the loss": loss.detach()}

    def peak_bytes(self) -> int:
        """Of a step, above weights and what the optimizer keeps."""
        self.optimizer.zero_grad(set_to_none=True)
        return peak_bytes(self)
