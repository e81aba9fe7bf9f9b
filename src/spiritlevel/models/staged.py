"""What the image models have in common: maps by size, and memory spared in training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spiritlevel.models.aside import laid_out
from spiritlevel.models.ghost import GhostModule

__all__ = ["Staged", "checkpointed"]


class Staged(nn.Module):
    """(N, in_chans, H, W) -> logits (N, num_classes), by a stem, stages in a row and a head.

    `checkpointing = True` keeps of each stage only its input while training, and runs it again in
    the backward pass: less memory, the same numbers. The second run changes no running statistics.
    """

    checkpointing: bool = False

    def stem(self, x: Tensor) -> Tensor:
        """Images -> the first map."""
        raise NotImplementedError

    def stages(self) -> nn.Sequential | list[nn.Module]:
        """What follows in a row."""
        raise NotImplementedError

    def halvings(self) -> tuple[int, ...]:
        """Indices of the stages that halve the map."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        """The last map -> logits."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last_map(x))

    def last_map(self, x: Tensor) -> Tensor:
        """Images -> what the head gets."""
        x, stages = self.stem(self._laid_out(x)), self.stages()
        if isinstance(stages, nn.Module) and not self.checkpointing:
            x = stages(x)  # called as a whole, so that a hook on it sees the pass
        else:
            for stage in stages:
                x = self._ran(stage, x)
        return x

    def intermediates(self, x: Tensor, count: int | None = None) -> list[Tensor]:
        """The last map of each size, the largest first: the input of a detector or a decoder.

        One before each stage that halves, and one after all stages, which is what the head gets.
        Of the first `count` alone, no more is computed than they take.
        """
        maps, halvings = [], self.halvings()
        x = self.stem(self._laid_out(x))
        for i, stage in enumerate(self.stages()):
            if i in halvings:
                maps.append(x)
                if len(maps) == count:
                    return maps
            x = self._ran(stage, x)
        return [*maps, x]

    def _laid_out(self, x: Tensor) -> Tensor:
        """In training of a Ghost network, whose modules are one operation then, channels-last."""
        ghosts = self.training and any(isinstance(m, GhostModule) for m in self.modules())
        return laid_out(x) if ghosts else x

    def _ran(self, stage: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = checkpointed(stage, x) if self.checkpointing else stage(x)
        return y


def checkpointed(stage: nn.Module, x: Tensor) -> Tensor:
    """stage(x), whose inner tensors are made again in the backward pass instead of kept.

    The second run draws the same random numbers, starts from the buffers that the first one found
    and leaves the module's own untouched, so that running statistics and counters follow a batch
    once.
    """
    if not torch.is_grad_enabled():
        y: Tensor = stage(x)
        return y
    if torch.compiler.is_compiling():  # the graph writes buffers once, however often it computes
        y = checkpoint(stage, x, use_reentrant=False)
        return y
    y = checkpoint(stage, x, use_reentrant=False, context_fn=lambda: _contexts(stage))
    return y


def _contexts(
    stage: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first run and for the others, one for each pass back."""
    return nullcontext(), _OnCopies(stage)


class _OnCopies(AbstractContextManager[None]):
    """Within the block the modules have copies of the buffers that they have now, ever anew."""

    def __init__(self, stage: nn.Module) -> None:
        self.found = [
            (module, {name: b.clone() for name, b in module._buffers.items() if b is not None})
            for module in stage.modules()
            if module._buffers
        ]
        self.own: list[tuple[nn.Module, dict[str, Tensor | None]]] = []

    def __enter__(self) -> None:
        self.own = [(module, dict(module._buffers)) for module, _ in self.found]
        for module, buffers in self.found:
            module._buffers.update({name: b.clone() for name, b in buffers.items()})

    def __exit__(self, *_raised: object) -> None:
        for module, buffers in self.own:
            module._buffers.update(buffers)
