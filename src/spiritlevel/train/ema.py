"""An exponential moving average of a model, by torch's own `AveragedModel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError

if TYPE_CHECKING:
    from torch.optim.swa_utils import AveragedModel

__all__ = ["averaged", "decay_at"]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy in eval mode that follows the model: `update_parameters(model)` after each update.

        average <- d * average + (1 - d) * model,    d = `decay_at(decay, updates so far)`

    Its `module` is the averaged model, with the keys of the model's `state_dict`; its own
    `state_dict` has the count of updates too, from which a run goes on.

    Buffers are averaged as the weights are. The running statistics of the latest weights are not
    those of averaged ones, which lie some 1 / (1 - decay) updates back; the average of the
    statistics lies there too. Counters and other whole numbers are copied: torch's own average
    would round them down to a number that no model had. What equals the average stays, so that a
    mask of infinities does not become NaN. Raises UsageError.
    """
    if not isinstance(decay, int | float) or not 0 < decay < 1:
        raise UsageError(f"got {decay=} of an average of weights; wanted a number between 0 and 1")
    half = [n for n, p in model.named_parameters() if p.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise UsageError(
            f"got {type(model).__name__} whose {half[0]} is in half precision, in which an average "
            "of slow steps stands still; wanted float32. Average a copy: "
            "averaged(copy.deepcopy(model).float(), decay), which takes the model's updates"
        )
    from torch.optim.swa_utils import AveragedModel

    follower = AveragedModel(model, multi_avg_fn=_Follow(decay), use_buffers=True)
    return follower.requires_grad_(False).eval()


@dataclass(frozen=True)
class _Follow:
    """Moves averages towards values, in place; of a class, so that it can be pickled."""

    decay: float

    @torch.no_grad()
    def __call__(self, averages: Any, values: Any, count: Tensor | int) -> None:
        weight = 1 - decay_at(self.decay, int(count))
        for average, given in zip(averages, values, strict=True):
            value = given.to(average)
            if average.is_floating_point() or average.is_complex():
                moved = torch.lerp(average, value, weight)
                average.copy_(torch.where(average == value, average, moved))
            else:
                average.copy_(value)


def decay_at(decay: float, updates: int) -> float:
    """min(decay, (1 + updates) / (10 + updates)): a short run is not stuck at its start.

    As TensorFlow's `ExponentialMovingAverage` with `num_updates`. The first update, with none
    before it, copies the model.
    """
    return min(decay, (1 + updates) / (10 + updates)) if updates else 0.0
