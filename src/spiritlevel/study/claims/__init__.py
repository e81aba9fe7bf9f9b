"""The five claims of the article: for each its cells, the rule of its verdict, and the figures.

A rule is written here before a run and copied into its `config.json`; `judge` reads records alone.
"""

from __future__ import annotations

from types import ModuleType

from spiritlevel.study.claims import converges, decouples, gradients, regularises, stabilises
from spiritlevel.study.claims.judgement import STATUSES, Judgement, Part

__all__ = ["CLAIMS", "STATUSES", "Judgement", "Part", "rules"]

CLAIMS: dict[str, ModuleType] = {
    module.CLAIM: module for module in (stabilises, converges, gradients, regularises, decouples)
}


def rules() -> dict[str, dict[str, float]]:
    """The thresholds of each claim's rule."""
    return {claim: dict(module.RULE) for claim, module in CLAIMS.items()}
