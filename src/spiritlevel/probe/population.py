"""What each batch norm is fed over all batches, with batch statistics and without dropout.

That is what the running statistics stand for in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from spiritlevel.lent.as_used import borrowed, frozen_norms, put_in, seeded
from spiritlevel.lent.feeding import Forward, SingleValue, Taken, run_batch, size_of, take
from spiritlevel.lent.heard import heard
from spiritlevel.lent.norms import batch_norms
from spiritlevel.probe.batches_in import Reading, Recorder

__all__ = ["Population", "population"]


@dataclass(frozen=True)
class Population:
    fed: dict[str, Reading] = field(default_factory=dict)
    """By path, in the order in which the layers were first called."""
    frozen: frozenset[str] = frozenset()
    """Those that keep to their running statistics while the model trains."""


def population(
    model: nn.Module,
    batches: Iterable[Any] | Taken,
    *,
    forward: Forward | None = None,
    most_batches: int = 32,
) -> Population:
    """Frozen norms keep to their running statistics; the model is left as it was found.

    A batch that gives a layer one value a channel, which training refuses, is left out. Raises
    UsageError.
    """
    taken = take(batches, most_batches)
    recorder = Recorder()
    with borrowed(model) as buffers_back:
        frozen = frozen_norms(model)
        put_in(model, "batch", frozen)
        for index, batch in enumerate(taken.batches):
            recorder.starts(index, size_of(batch))
            seeded(model)
            try:
                with heard(batch_norms(model), recorder.reads):
                    run_batch(model, batch, forward)
            except SingleValue:
                continue
            finally:
                buffers_back()
    return Population(recorder.readings(), frozenset(frozen))
