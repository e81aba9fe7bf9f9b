"""Claim 3: BN prevents vanishing and exploding, of activations and of gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from spiritlevel.study.claims.common import (
    arm_numbers,
    best_arm,
    mean_final_loss,
    norms,
    shape,
    training_cells,
)
from spiritlevel.study.claims.judgement import (
    Judgement,
    Part,
    Status,
    agree,
    number,
    setting,
    times,
)
from spiritlevel.study.config import Plan
from spiritlevel.study.networks import init_title, network
from spiritlevel.study.records import Cell, Record, Records
from spiritlevel.study.stats import MIN_SEEDS, Interval, mean_interval

__all__ = ["CLAIM", "INITS", "NETWORK", "RULE", "THEORY", "cells", "judge"]

CLAIM = "gradients"
NETWORK = ("mlp", "residual_mlp")
RULE = {
    "steady_within": 0.05,  # |activation factor per layer - 1| with BN
    "runs_away_beyond": 0.3,  # the same without BN, for some init: else there is nothing to prevent
    "gradient_within": 0.08,  # |gradient factor per layer - 1| with BN
}
THEORY = math.sqrt(math.pi / (math.pi - 1))
"""1.211: the gradient's growth per layer in a wide plain ReLU net with BN (Yang et al. 2019)."""
INITS = ("he*0.5", "he", "he*2")
SMALL = "normal*0.01"
"""He weights make a residual net without BN explode; small ones are its best chance."""
DEEP_LRS = (0.01, 0.03, 0.1, 0.3)
_FEWEST = 5
"""Weight layers that leave a slope. With so many, none means that the signal was lost."""
BJORCK, YANG = "Bjorck et al. 2018, Fig. 5", "Yang et al. 2019"


def cells(plan: Plan) -> Iterator[Cell]:
    """At initialisation: norm by weight scale; and the same networks while they train."""
    for name in plan.networks:
        known = network(name)
        base = shape(plan, name) | dict(known.deep)
        for seed in plan.seeds:
            yield from _depth_cells(base, seed, INITS)
        for depth in known.depths:
            yield from _depth_cells(base | {"depth": depth}, plan.seeds[0], INITS)
        yield from training_cells(plan, name)
    if not plan.networks:
        yield from _mlp_cells(plan)


def _depth_cells(base: dict[str, object], seed: int, inits: Sequence[str]) -> Iterator[Cell]:
    for norm in ("none", "batch"):
        for init in inits:
            yield Cell("depth", base | {"norm": norm, "init": init, "seed": seed})


def _mlp_cells(plan: Plan) -> Iterator[Cell]:
    """Very deep and narrow: cheap enough for many layers."""
    for seed in plan.seeds:
        for name in NETWORK:
            wide = {"depth": plan.depth, "width": plan.width, "activation": "relu"}
            base = shape(plan, name) | wide | {"batch_size": 128, "size": 32}
            yield from _depth_cells(base, seed, (*INITS, SMALL))
            if name == "mlp":  # what the rate depends on: the batch, and the activation function
                for batch_size, activation in ((32, "relu"), (512, "relu"), (128, "tanh")):
                    run = {"norm": "batch", "init": "he", "seed": seed}
                    other = {"batch_size": batch_size, "activation": activation}
                    yield Cell("depth", base | run | other)
            yield from _deep_cells(plan, name, seed)
            if seed == plan.seeds[0]:  # to look at, not to judge by
                for part in (8, 4, 2):
                    shallow = base | {"depth": max(4, plan.depth // part)}
                    yield from _depth_cells(shallow, seed, INITS)


def _deep_cells(plan: Plan, name: str, seed: int) -> Iterator[Cell]:
    """Trained with He's weights; the residual net without a norm with small ones."""
    base = shape(plan, name) | {"depth": plan.deep_depth, "width": 128, "activation": "relu"}
    sizes = {"steps": plan.deep_steps, "every": 10, "batch_size": 128}
    for norm in ("none", "batch"):
        init = SMALL if (name, norm) == ("residual_mlp", "none") else "he"
        for lr in DEEP_LRS:
            run = {"norm": norm, "init": init, "lr": lr, "seed": seed}
            yield Cell("train", base | sizes | run)


def judge(records: Records) -> Judgement:
    """Activations forward, gradients backward, each layer by layer."""
    activations = _activations(records)
    gradients = _every_init(records, "gradient", RULE["gradient_within"])
    status: Status
    if activations is None or gradients is None:
        status = "inconclusive"
    elif activations and gradients:
        status = "supported"
    else:
        status = "partly" if activations or gradients else "not supported"
    headline = _part(records, "batch", "he", "gradient", YANG, holds=gradients)
    parts = (
        _part(records, "batch", "he", "activation", BJORCK, holds=activations),
        headline,
        *_controls(records),
        *_dependence(records),
        *_trained(records),
    )
    return Judgement(CLAIM, status, headline, parts, _words(records, headline))


def _batch_size(records: Records) -> int:
    """At which the rule reads: the one at which every norm ran."""
    return max(records.values("depth", "batch_size", norm="none"), default=0)


def _factors(records: Records, norm: str, init: str, what: str) -> list[float | None]:
    """By seed, the factor per layer at the depth and batch size of the rule."""
    return [run.result[f"{what}_growth"] for run in _runs(records, norm, init) if run.result]


def _runs(records: Records, norm: str, init: str) -> list[Record]:
    deepest = max(records.values("depth", "depth"), default=None)
    at = {"norm": norm, "init": init, "batch_size": _batch_size(records)}
    return [
        r
        for r in records.select("depth", **at)
        if r.settings.get("activation", "relu") == "relu"
        and r.settings.get("depth") == deepest
        and r.result
        and len(r.result["layers"]) >= _FEWEST
    ]


def _within(factors: Sequence[float | None], bound: float) -> bool | None:
    """Whether all seeds lie within the bound of 1, or none does; None if they differ or are few."""
    if len(factors) < MIN_SEEDS:
        return None
    return agree([factor is not None and abs(factor - 1) < bound for factor in factors])


def _activations(records: Records) -> bool | None:
    """Steady with BN whatever the weights; without BN some weights run away, in every seed."""
    beyond = RULE["runs_away_beyond"]
    controls = [_factors(records, "none", init, "activation") for init in INITS]
    if not any(_within(factors, beyond) is False for factors in controls):
        return None
    return _every_init(records, "activation", RULE["steady_within"])


def _every_init(records: Records, what: str, bound: float) -> bool | None:
    """True: within the bound for every weight scale and seed. False: for some scale, in no seed."""
    verdicts = [_within(_factors(records, "batch", init, what), bound) for init in INITS]
    if all(verdicts):
        return True
    return False if False in verdicts else None


def _part(records: Records, norm: str, init: str, what: str, source: str, **more: Any) -> Part:
    found = mean_interval(_factors(records, norm, init, what))
    words = {"init": init_title(init), "theory": number(THEORY)}
    return Part.of(
        f"claims.gradients.{what}_{norm}",
        found,
        source,
        unit="×",
        digits=4,
        words=words,
        records=tuple(map(records.number, _runs(records, norm, init))),
        **more,
    )


def _controls(records: Records) -> Iterator[Part]:
    for init in (*INITS, SMALL):
        for norm in ("none", "batch"):
            for what in ("activation", "gradient"):
                shown = (norm, init) == ("batch", "he")
                if not shown and _factors(records, norm, init, what):
                    yield _part(records, norm, init, what, BJORCK)


def _dependence(records: Records) -> Iterator[Part]:
    """The same rate at other batch sizes and with another activation, against the theory."""
    for batch_size, activation in ((32, "relu"), (512, "relu"), (128, "tanh")):
        at = {"norm": "batch", "init": "he", "batch_size": batch_size, "activation": activation}
        runs = records.by_seed("depth", **at)
        if runs:
            found = mean_interval([run["gradient_growth"] for run in runs.values()])
            words = {"batch": str(batch_size), "activation": activation, "theory": number(THEORY)}
            more: dict[str, Any] = {
                "words": words,
                "records": tuple(records.numbers("depth", **at)),
            }
            yield Part.of("claims.gradients.dependence", found, YANG, unit="×", **more)


def _trained(records: Records) -> Iterator[Part]:
    """Where each norm ends at its own best rate: what matters in the end."""
    for norm in norms(records):
        arm = best_arm(records, norm)
        if arm is not None:
            at = {"norm": norm, "init": arm[0], "lr": arm[1]}
            loss, n = mean_final_loss(records, "train", **at), len(records.select("train", **at))
            words = {"norm": norm, "lr": setting(arm[1]), "init": init_title(arm[0])}
            source = "Bjorck et al. 2018; He et al. 2016"
            read = arm_numbers(records, {norm: arm})
            yield Part("claims.gradients.trained", loss, source, n=n, words=words, records=read)


def _farthest(records: Records) -> float | None:
    """The activation factor with BN that is farthest from 1, over all weight scales and seeds."""
    factors = [f for init in INITS for f in _factors(records, "batch", init, "activation")]
    known = [factor for factor in factors if factor is not None]
    return max(known, key=lambda factor: abs(factor - 1), default=None)


def _words(records: Records, headline: Part) -> dict[str, str]:
    def mean(init: str) -> str:
        found: Interval | None = mean_interval(_factors(records, "none", init, "activation"))
        return times(found)

    layers = [len(r.result["layers"]) for r in records.select("depth") if r.result]
    depth = max(layers, default=0)
    growth = headline.value
    return {
        "activation": times(_farthest(records)),
        "shrinks": mean("he*0.5"),
        "grows": mean("he*2"),
        "gradient": times(growth),
        "over_depth": times(None if growth is None else growth ** (depth - 2)),
        "theory": number(THEORY),
        "depth": str(depth),
    }
