"""Claim 3: BN prevents vanishing and exploding, of activations and of gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from spiritlevel.study.claims.common import best_rate, mean_final_loss
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
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.stats import MIN_SEEDS, Interval, mean_interval

__all__ = ["CLAIM", "DEEP_ARMS", "INITS", "RULE", "THEORY", "cells", "judge"]

CLAIM = "gradients"
RULE = {
    "steady_within": 0.05,  # |activation factor per layer - 1| with BN
    "runs_away_beyond": 0.3,  # the same without BN, for some init: else there is nothing to prevent
    "gradient_within": 0.05,  # |gradient factor per layer - 1|, plain net with BN
    "residual_within": 0.08,
}
THEORY = math.sqrt(math.pi / (math.pi - 1))
"""1.211: the gradient's growth per layer in a wide plain ReLU net with BN (Yang et al. 2019)."""
INITS = ("he*0.5", "he", "he*2")
DEEP_LRS = (0.01, 0.03, 0.1, 0.3)
DEEP_ARMS = (
    ("mlp", "none", "he"),
    ("mlp", "batch", "he"),
    # He weights make a residual net without BN explode; small ones are its best chance.
    ("residual_mlp", "none", "normal*0.01"),
    ("residual_mlp", "batch", "he"),
)
BJORCK, YANG = "Bjorck et al. 2018, Fig. 5", "Yang et al. 2019"


def cells(plan: Plan) -> Iterator[Cell]:
    """At initialisation: norm by weight scale, plain and residual; in training: norm by rate."""
    base = {"activation": "relu", "size": 32, "depth": plan.depth, "width": plan.width}
    for seed in plan.seeds:
        arms = [
            ("mlp", norm, init) for norm in ("none", "batch") for init in (*INITS, "normal*0.01")
        ]
        arms += [("residual_mlp", "none", init) for init in ("he", "normal*0.01")]
        arms += [("residual_mlp", "batch", "he")]
        for model, norm, init in arms:
            run = {"model": model, "norm": norm, "init": init, "seed": seed, "batch_size": 128}
            yield Cell("depth", base | run)
        # What the rate depends on: the batch, and the activation function.
        for batch_size, activation in ((32, "relu"), (512, "relu"), (128, "tanh")):
            run = {"model": "mlp", "norm": "batch", "init": "he", "seed": seed}
            yield Cell("depth", base | run | {"batch_size": batch_size, "activation": activation})
        for model, norm, init in DEEP_ARMS:
            for lr in DEEP_LRS:
                run = {"model": model, "norm": norm, "init": init, "seed": seed, "batch_size": 128}
                sizes = {"size": plan.size, "depth": plan.deep_depth, "width": 128}
                steps = {"lr": lr, "steps": plan.deep_steps, "every": 10}
                yield Cell("deep", base | run | sizes | steps)


def judge(records: Records) -> Judgement:
    """Activations, then gradients of plain nets and of residual ones."""
    activations = _activations(records)
    plain = _gradients(records, "mlp", INITS, RULE["gradient_within"])
    residual = _gradients(records, "residual_mlp", ("he",), RULE["residual_within"])
    status: Status
    if activations is None or plain is None or (activations and plain and residual is None):
        status = "inconclusive"
    elif activations and plain and residual:
        status = "supported"
    else:
        status = "partly" if activations or plain else "not supported"
    headline = _part(records, "mlp", "batch", "he", "gradient", YANG, plain)
    parts = (
        _part(records, "mlp", "batch", "he", "activation", BJORCK, activations),
        headline,
        _part(records, "residual_mlp", "batch", "he", "gradient", YANG, residual),
        *_controls(records),
        *_dependence(records),
        *_deep(records),
    )
    return Judgement(CLAIM, status, headline, parts, _words(records, headline))


def _factors(records: Records, model: str, norm: str, init: str, what: str) -> list[float | None]:
    """By seed, the factor per layer at the batch size of the rule."""
    runs = records.by_seed(
        "depth", model=model, norm=norm, init=init, batch_size=128, activation="relu"
    )
    return [run[f"{what}_growth"] for run in runs.values()]


def _within(factors: Sequence[float | None], bound: float) -> bool | None:
    """Whether all seeds lie within the bound of 1, or none does; None if they differ or are few."""
    if len(factors) < MIN_SEEDS:
        return None
    return agree([factor is not None and abs(factor - 1) < bound for factor in factors])


def _activations(records: Records) -> bool | None:
    """Steady with BN whatever the weights; without BN some weights run away, in every seed."""
    beyond = RULE["runs_away_beyond"]
    controls = [_factors(records, "mlp", "none", init, "activation") for init in INITS]
    if not any(_within(factors, beyond) is False for factors in controls):
        return None
    return _every_init(records, "mlp", INITS, "activation", RULE["steady_within"])


def _gradients(records: Records, model: str, inits: Sequence[str], bound: float) -> bool | None:
    return _every_init(records, model, inits, "gradient", bound)


def _every_init(
    records: Records, model: str, inits: Sequence[str], what: str, bound: float
) -> bool | None:
    """True: within the bound for every weight scale and seed. False: for some scale, in no seed."""
    verdicts = [_within(_factors(records, model, "batch", init, what), bound) for init in inits]
    if all(verdicts):
        return True
    return False if False in verdicts else None


def _part(
    records: Records,
    model: str,
    norm: str,
    init: str,
    what: str,
    source: str,
    holds: bool | None = None,
) -> Part:
    found = mean_interval(_factors(records, model, norm, init, what))
    quantity = f"claims.gradients.{what}_{model}_{norm}"
    words = {"init": init, "theory": number(THEORY)}
    return Part.of(quantity, found, source, holds=holds, unit="×", digits=4, words=words)


def _controls(records: Records) -> Iterator[Part]:
    for init in INITS:
        for what in ("activation", "gradient"):
            yield _part(records, "mlp", "none", init, what, BJORCK)
    for init in ("he*0.5", "he*2"):
        yield _part(records, "mlp", "batch", init, "activation", BJORCK)
    for init in ("he", "normal*0.01"):
        for what in ("activation", "gradient"):
            yield _part(records, "residual_mlp", "none", init, what, BJORCK)


def _dependence(records: Records) -> Iterator[Part]:
    """The same rate at other batch sizes and with another activation, against the theory."""
    for batch_size, activation in ((32, "relu"), (512, "relu"), (128, "tanh")):
        runs = records.by_seed(
            "depth",
            model="mlp",
            norm="batch",
            init="he",
            batch_size=batch_size,
            activation=activation,
        )
        found = mean_interval([run["gradient_growth"] for run in runs.values()])
        words = {"batch": str(batch_size), "activation": activation, "theory": number(THEORY)}
        yield Part.of("claims.gradients.dependence", found, YANG, unit="×", words=words)


def _deep(records: Records) -> Iterator[Part]:
    """Where each deep net ends at its own best rate: what matters in the end."""
    for model, norm, init in DEEP_ARMS:
        rate = best_rate(records, "deep", norm, model=model, init=init)
        runs = records.by_seed("deep", model=model, norm=norm, init=init, lr=rate)
        loss = mean_final_loss(records, "deep", model=model, norm=norm, init=init, lr=rate)
        words = {"norm": norm, "lr": setting(rate), "init": init}
        source = "Bjorck et al. 2018; He et al. 2016"
        if runs:
            yield Part(f"claims.gradients.deep_{model}", loss, source, n=len(runs), words=words)


def _farthest(records: Records) -> float | None:
    """The activation factor with BN that is farthest from 1, over all weight scales and seeds."""
    factors = [f for init in INITS for f in _factors(records, "mlp", "batch", init, "activation")]
    known = [factor for factor in factors if factor is not None]
    return max(known, key=lambda factor: abs(factor - 1), default=None)


def _words(records: Records, headline: Part) -> dict[str, str]:
    def mean(model: str, norm: str, init: str, what: str) -> str:
        found: Interval | None = mean_interval(_factors(records, model, norm, init, what))
        return times(found)

    depth = max(records.values("depth", "depth"), default=0)
    return {
        "activation": times(_farthest(records)),
        "shrinks": mean("mlp", "none", "he*0.5", "activation"),
        "grows": mean("mlp", "none", "he*2", "activation"),
        "gradient": times(headline.value),
        "over_depth": times(None if headline.value is None else headline.value ** (depth - 1)),
        "residual": mean("residual_mlp", "batch", "he", "gradient"),
        "theory": number(THEORY),
        "depth": str(depth),
    }
