"""What a check knows of a model: the rules read it, and touch nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from spiritlevel.doctor.against import Against
from spiritlevel.doctor.structure import Structure
from spiritlevel.lent.norms import batch_norms
from spiritlevel.probe.layers import norm_places
from spiritlevel.probe.modes import training_after_eval
from spiritlevel.probe.ranks import Ranks, across_ranks

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    model: nn.Module
    data: Any = None
    """`probe.evidence.Evidence`: what was measured on batches, or None."""
    gap: Any = None
    """`probe.gap.Gap`: eval against batch statistics, with targets, or None."""
    loader: Any = None
    """`doctor.loader.Loader`: what a DataLoader tells of itself, or None."""
    probe: Any = None
    """A `probe.Probe` that has run, or None."""
    reference: nn.Module | None = None
    """The model before a conversion, or the source of an average."""
    comparison: Any = None
    """`probe.compare.Comparison`: both models on the example, or None."""

    @cached_property
    def norms(self) -> dict[str, nn.Module]:
        """Every normalization layer, by its first path."""
        modules = dict(self.model.named_modules())
        return {path: modules[path] for path in norm_places(self.model)}

    @cached_property
    def batch_norms(self) -> dict[str, nn.Module]:
        """Those that take statistics of the batch in training."""
        return batch_norms(self.model)

    @cached_property
    def still_training(self) -> list[str]:
        """Batch norms that `model.eval()` leaves in training."""
        return training_after_eval(self.model)

    @cached_property
    def ranks(self) -> Ranks | None:
        """The running statistics on all ranks of torch.distributed; None where there is but one."""
        return across_ranks(self.model)

    @cached_property
    def structure(self) -> Structure:
        """Who feeds whom, as far as graphs show it."""
        return Structure(self.model)

    @cached_property
    def against(self) -> Against:
        """The model beside its reference; beside itself where it has none."""
        return Against(self.model, self.model if self.reference is None else self.reference)
