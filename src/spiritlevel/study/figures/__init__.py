"""Records into figures: for each claim those that the page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from spiritlevel.report.story import Figure
from spiritlevel.study.claims import networks
from spiritlevel.study.config import Plan
from spiritlevel.study.figures import converges, decouples, gradients, regularises, stabilises
from spiritlevel.study.figures.build import by_network
from spiritlevel.study.records import Records

__all__ = ["claim_figures"]

_FIGURES: dict[str, Callable[[Records], Iterator[Figure]]] = {
    "stabilises": stabilises.figures,
    "converges": converges.figures,
    "gradients": gradients.figures,
    "regularises": regularises.figures,
    "decouples": decouples.figures,
}
_ARTICLE: dict[str, Callable[[Records], Iterator[Figure]]] = {
    "stabilises": stabilises.ghostnet,
    "converges": converges.ghostnet,
}
"""The article's network beside a claim that is judged on a smaller one."""


def claim_figures(claim: str, records: Records, plan: Plan) -> list[Figure]:
    """The figures of one claim, with a choice of the network where there are several."""
    draw, names = _FIGURES[claim], networks(claim, plan)
    found = by_network({name: list(draw(records.of(name))) for name in names})
    beside = _ARTICLE.get(claim)
    if beside is not None and plan.ghost_model not in names:
        found += beside(records.of(plan.ghost_model))
    return found
