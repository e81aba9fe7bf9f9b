"""Claim 5: with BN a layer's update depends less on the other layers."""

from __future__ import annotations

from collections.abc import Iterator
from math import log10
from statistics import geometric_mean
from typing import Any

from spiritlevel.study.claims.converges import landscape_cells
from spiritlevel.study.claims.judgement import Judgement, Part, Status, agree, number, times
from spiritlevel.study.config import Plan
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.stats import MIN_SEEDS, Interval, ratio_interval

__all__ = ["CLAIM", "RULE", "cells", "judge", "shift_pairs"]

CLAIM = "decouples"
RULE = {
    "exact_below": 1e-10,  # relative error of the identities in float64 with eps = 0
    "control_above": 0.01,  # mean |cos(w, g)| without BN: else the identity says nothing
    "trains_below": 1.15,  # final training loss, nats: ln 10 / 2. Without learning nothing shifts
    "mostly": 0.8,  # share of comparable runs
    "rarely": 0.2,
}
IOFFE, LAARHOVEN = "Ioffe & Szegedy 2015, sec. 3.3", "van Laarhoven 2017"
SANTURKAR = "Santurkar et al. 2018, Def. 2.1"


def cells(plan: Plan) -> Iterator[Cell]:
    """The identities; the cross-layer figure is read in the landscape runs of claim 2."""
    yield from landscape_cells(plan)
    for seed in plan.seeds:
        yield Cell("invariance", {"seed": seed, "batch_size": 64, "size": plan.size})


def judge(records: Records) -> Judgement:
    """Scale: exact identities. Layers: do earlier layers' steps turn a layer's gradient less?"""
    runs = records.by_seed("invariance")
    scale = _scale(list(runs.values()))
    pairs = shift_pairs(records)
    better = [
        pair["batch"]["relative"] < pair["none"]["relative"]
        and pair["batch"]["cosine"] > pair["none"]["cosine"]
        for pair in pairs
    ]
    share = sum(better) / len(better) if better else None
    # What BN does here depends on the initialisation: one alone decides nothing.
    layers = _layers(share) if len({pair["init"] for pair in pairs}) > 1 else None
    by_seed = _ratio_by_seed(pairs)
    ratio = ratio_interval(list(by_seed.values()))
    status: Status
    if len(runs) < MIN_SEEDS or scale is None or len(by_seed) < MIN_SEEDS:
        status = "inconclusive"
    elif scale and layers:
        status = "supported"
    else:
        status = "partly" if scale or layers else "not supported"
    headline = Part.of("claims.decouples.shift", ratio, SANTURKAR, holds=layers, unit="×")
    count = Part(
        "claims.decouples.share",
        None if share is None else 100 * share,
        SANTURKAR,
        n=len(pairs),
        holds=layers,
        unit=" %",
    )
    parts = (*_identities(list(runs.values()), scale), headline, count)
    return Judgement(CLAIM, status, headline, parts, _words(list(runs.values()), ratio, better))


def _scale(runs: list[dict[str, Any]]) -> bool | None:
    """All identities to rounding, in every seed; None if the control shows nothing to decouple."""
    control = [run["cosine_without"] for run in runs]
    if not control or any(cosine is None or cosine <= RULE["control_above"] for cosine in control):
        return None
    figures = [
        [*run["errors"]["0.0"], run["cosine"], run["trajectories"]["worst_difference"]]
        for run in runs
    ]
    if any(None in figure for figure in figures):
        return None
    return agree([max(figure) < RULE["exact_below"] for figure in figures])


def shift_pairs(records: Records) -> list[dict[str, Any]]:
    """Runs with and without BN at the same rate, initialisation and seed, where both train.

    A rate and initialisation counts only if its pair trains in every seed: what BN does here
    depends on both, and the interval is over seeds alone.
    """
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for record in records.select("landscape", norm="batch"):
        settings = {name: record.settings[name] for name in ("lr", "init", "seed")}
        twin = records.select("landscape", norm="none", **settings)
        if twin and twin[0].result and record.result:
            arms = {"batch": record.result, "none": twin[0].result}
            if all(_comparable(run) for run in arms.values()):
                pair = {name: run["shift_median"] for name, run in arms.items()} | settings
                found.setdefault((pair["init"], pair["lr"]), []).append(pair)
    seeds = len(records.values("landscape", "seed"))
    return [pair for pairs in found.values() if len(pairs) == seeds for pair in pairs]


def _comparable(run: dict[str, Any]) -> bool:
    """It trains, and its shift is a number."""
    bound = RULE["trains_below"] * log10(run["classes"])
    trains = run["final_loss"] is not None and run["final_loss"] < bound
    return trains and None not in run["shift_median"].values()


def _layers(share: float | None) -> bool | None:
    if share is None or RULE["rarely"] < share < RULE["mostly"]:
        return None
    return share >= RULE["mostly"]


def _ratio_by_seed(pairs: list[dict[str, Any]]) -> dict[int, float]:
    """seed -> the geometric mean over its pairs of relative shift with BN over that without."""
    ratios: dict[int, list[float]] = {}
    for pair in pairs:
        if pair["none"]["relative"] and pair["batch"]["relative"]:
            ratio = pair["batch"]["relative"] / pair["none"]["relative"]
            ratios.setdefault(pair["seed"], []).append(ratio)
    return {seed: geometric_mean(values) for seed, values in ratios.items()}


def _identities(runs: list[dict[str, Any]], scale: bool | None) -> Iterator[Part]:
    if not runs:
        return
    n = len(runs)

    def worst(name: str) -> float | None:
        values = [value for run in runs for value in _at(run, name)]
        return None if None in values else max(values)

    yield Part("claims.decouples.exact", worst("errors/0.0"), IOFFE, n=n, holds=scale)
    yield Part("claims.decouples.float32", worst("errors_float32"), IOFFE, n=n)
    yield Part("claims.decouples.eps", worst("errors/1e-05"), IOFFE, n=n)
    yield Part("claims.decouples.cosine", worst("cosine"), LAARHOVEN, n=n, holds=scale)
    yield Part("claims.decouples.cosine_without", worst("cosine_without"), LAARHOVEN, n=n)
    yield Part(
        "claims.decouples.rate", worst("trajectories/worst_difference"), LAARHOVEN, n=n, holds=scale
    )
    yield Part(
        "claims.decouples.rate_without",
        worst("trajectories_without/worst_difference"),
        LAARHOVEN,
        n=n,
    )


def _at(run: dict[str, Any], path: str) -> list[Any]:
    value: Any = run
    for name in path.split("/"):
        value = value[name]
    return value if isinstance(value, list) else [value]


def _words(
    runs: list[dict[str, Any]], ratio: Interval | None, better: list[bool]
) -> dict[str, str]:
    errors = [error for run in runs for error in run["errors"]["0.0"] if error is not None]
    without = [error for run in runs for error in run["errors_without"] if error is not None]
    return {
        "error": number(max(errors, default=None)),
        "without": number(max(without, default=None)),
        "ratio": times(ratio),
        "better": str(sum(better)),
        "pairs": str(len(better)),
    }
