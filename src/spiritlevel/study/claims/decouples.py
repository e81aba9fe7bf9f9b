"""Claim 5: with BN a layer's update depends less on the other layers."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from statistics import geometric_mean
from typing import Any

from spiritlevel.study.claims.common import landscape_cells, shape
from spiritlevel.study.claims.judgement import (
    PERCENT,
    Judgement,
    Part,
    Status,
    agree,
    number,
    times,
)
from spiritlevel.study.config import Plan
from spiritlevel.study.networks import network
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.stats import MIN_SEEDS, Interval, ratio_interval

__all__ = ["CLAIM", "NETWORK", "RULE", "cells", "judge", "shift_pairs"]

CLAIM = "decouples"
NETWORK = ("small_vgg",)
RULE = {
    "exact_below": 1e-10,  # relative error of the identities in float64 with eps = 0
    "control_above": 0.01,  # mean |cos(w, g)| without BN: else the identity says nothing
    "trains_below": 0.9,  # final training loss over that of chance. Without learning nothing shifts
    "mostly": 0.8,  # share of comparable runs
    "rarely": 0.2,
}
IOFFE, LAARHOVEN = "Ioffe & Szegedy 2015, sec. 3.3", "van Laarhoven 2017"
SANTURKAR = "Santurkar et al. 2018, Def. 2.1"


def cells(plan: Plan) -> Iterator[Cell]:
    """The identities, in each network and step by step in a single layer; the landscape's runs."""
    for name in plan.networks or NETWORK:
        yield from landscape_cells(plan, name)
        for seed in plan.seeds:
            start = {"init": network(name).inits[0], "seed": seed, "batch_size": 32}
            yield Cell("scaling", shape(plan, name) | start)
    for seed in plan.seeds:
        yield Cell("invariance", {"seed": seed, "batch_size": 64, "size": min(plan.size, 14)})


def judge(records: Records) -> Judgement:
    """Scale: exact identities. Layers: do earlier layers' steps turn a layer's gradient less?"""
    runs, layer = records.by_seed("scaling"), records.by_seed("invariance")
    scale = _scale(runs, layer)
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
    read = tuple(number for pair in pairs for number in pair["records"])
    headline = Part.of(
        "claims.decouples.shift", ratio, SANTURKAR, holds=layers, unit="×", records=read
    )
    count = Part(
        "claims.decouples.share",
        None if share is None else 100 * share,
        SANTURKAR,
        n=len(pairs),
        holds=layers,
        unit=PERCENT,
        records=read,
    )
    identities = _identities(records, scale)
    parts = (*identities, headline, count)
    return Judgement(CLAIM, status, headline, parts, _words(list(runs.values()), ratio, better))


def _scale(networks: dict[int, dict[str, Any]], layers: dict[int, dict[str, Any]]) -> bool | None:
    """All identities to rounding, in every seed; None if the control shows nothing to decouple."""
    if not networks or networks.keys() != layers.keys():
        return None
    control = [run["cosine_without"] for run in (*networks.values(), *layers.values())]
    if any(cosine is None or cosine <= RULE["control_above"] for cosine in control):
        return None
    worst: list[float] = []
    for seed, network_run in networks.items():
        layer = layers[seed]
        figures = [figure for run in (network_run, layer) for figure in run["errors"]["0.0"]]
        figures += [network_run["cosine"], layer["cosine"]]
        figures.append(layer["trajectories"]["worst_difference"])
        if None in figures:
            return None
        worst.append(max(figures))
    return agree([figure < RULE["exact_below"] for figure in worst])


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
                pair["records"] = [records.number(record), records.number(twin[0])]
                found.setdefault((pair["init"], pair["lr"]), []).append(pair)
    seeds = len(records.values("landscape", "seed"))
    return [pair for pairs in found.values() if len(pairs) == seeds for pair in pairs]


def _comparable(run: dict[str, Any]) -> bool:
    """It trains, and its shift is a number."""
    bound = RULE["trains_below"] * log(run["classes"])
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


def _identities(records: Records, scale: bool | None) -> Iterator[Part]:
    """Layer by layer in the network; and in a single layer, where a whole training can be told."""
    networks, layers = "scaling", "invariance"
    if not records.select(networks) or not records.select(layers):
        return

    def part(name: str, task: str, path: str, source: str, **more: Any) -> Part:
        runs = list(records.by_seed(task).values())
        values = [value for run in runs for value in _at(run, path)]
        return Part(
            f"claims.decouples.{name}",
            None if None in values else max(values),
            source,
            n=len(runs),
            records=tuple(records.numbers(task)),
            **more,
        )

    yield part("exact", networks, "errors/0.0", IOFFE, holds=scale)
    yield part("eps", networks, "errors/1e-05", IOFFE)
    yield part("cosine", networks, "cosine", LAARHOVEN, holds=scale)
    yield part("cosine_without", networks, "cosine_without", LAARHOVEN)
    yield part("exact_layer", layers, "errors/0.0", IOFFE, holds=scale)
    yield part("float32", layers, "errors_float32", IOFFE)
    yield part("rate", layers, "trajectories/worst_difference", LAARHOVEN, holds=scale)
    yield part("rate_without", layers, "trajectories_without/worst_difference", LAARHOVEN)


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
