"""Which layer of a run's model first gave what is not finite, on whichever process."""

from __future__ import annotations

from collections.abc import Sequence

from spiritlevel.train.group import Group
from spiritlevel.train.learner import Learner, Part
from spiritlevel.train.nonfinite import first_not_finite, parameter_not_finite

__all__ = ["culprit"]


def culprit(learner: Learner, parts: Sequence[Part], group: Group, finite_loss: bool) -> str:
    """In words, the same on all processes, which call it together; `parts` are the update's."""
    model = learner.model
    own = first_not_finite(model, lambda: [learner.passed(part, model=model) for part in parts])
    if own is None and finite_loss:
        name = parameter_not_finite(model, gradients=True)
        own = f"the gradient of {name}" if name else None
    found = [(rank, each) for rank, each in enumerate(group.objects(own)) if each]
    on = f", on rank {found[0][0]}" if found and group.size > 1 else ""
    return f"{found[0][1]}{on}" if found else "the loss itself"
