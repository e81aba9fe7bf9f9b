"""What each claim shows: figures from records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from spiritlevel.report.story import Figure
from spiritlevel.study.figures import converges, decouples, gradients, regularises, stabilises
from spiritlevel.study.records import Records

__all__ = ["FIGURES"]

FIGURES: dict[str, Callable[[Records], Iterator[Figure]]] = {
    "stabilises": stabilises.figures,
    "converges": converges.figures,
    "gradients": gradients.figures,
    "regularises": regularises.figures,
    "decouples": decouples.figures,
}
