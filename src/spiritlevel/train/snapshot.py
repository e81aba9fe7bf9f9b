"""What a checkpoint of a run holds, and whether it is of this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.train.config import Config
from spiritlevel.train.learner import Learner

__all__ = ["refuse_foreign", "snapshot"]


def snapshot(
    config: Config,
    fingerprint: str,
    learner: Learner,
    at: Mapping[str, Any],
    chances: list[dict[str, Any]],
) -> dict[str, Any]:
    """`fingerprint` is that of the images, `at` how far the run is, `chances` of each process."""
    return {
        "format": 1,
        "config": config.to_dict(),
        "images": fingerprint,
        "at": dict(at),
        "learner": learner.state_dict(),
        "chance": chances,
    }


def refuse_foreign(
    state: Mapping[str, Any], config: Config, fingerprint: str, learner: Learner
) -> None:
    """Raises UsageError for the snapshot of another run."""
    if other := config.differs(state["config"]):
        raise UsageError(f"got the checkpoint of another run: {'; '.join(other)}")
    if state["images"] != fingerprint:
        raise RecordsError(
            f"got images from {config.data} that differ from those that this run began "
            "with; wanted the same. Start a new run for the new images"
        )
    if odd := learner.differs(state["learner"]):
        raise UsageError(f"got a checkpoint of another model than {config.model} is now: {odd}")
