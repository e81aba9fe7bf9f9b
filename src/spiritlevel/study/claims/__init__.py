"""The five claims of the article: for each its cells, the rule of its verdict, and the figures.

A rule is written here before a run and copied into its `config.json`; `judge` reads records alone.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from spiritlevel.study.claims import converges, decouples, gradients, regularises, stabilises
from spiritlevel.study.claims.judgement import STATUSES, Judgement, Part, combine
from spiritlevel.study.config import Plan
from spiritlevel.study.records import Records

__all__ = ["CLAIMS", "STATUSES", "Judgement", "Part", "judge", "networks", "rules"]

CLAIMS: dict[str, ModuleType] = {
    module.CLAIM: module for module in (stabilises, converges, gradients, regularises, decouples)
}


def rules() -> dict[str, dict[str, float]]:
    """The thresholds of each claim's rule."""
    return {claim: dict(module.RULE) for claim, module in CLAIMS.items()}


def networks(claim: str, plan: Plan) -> tuple[str, ...]:
    """On which networks the claim is judged."""
    return plan.networks or tuple(CLAIMS[claim].NETWORK)


def judge(claim: str, records: Records, plan: Plan) -> Judgement:
    """The claim's rule on each network, and what they say together."""
    names = networks(claim, plan)
    found = combine({name: CLAIMS[claim].judge(records.of(name)) for name in names})
    if claim == converges.CLAIM and plan.ghost_model not in names:  # beside it, not judged
        beside = converges.ghostnet_arms(records.of(plan.ghost_model))
        found = replace(found, parts=(*found.parts, *beside))
    return found
