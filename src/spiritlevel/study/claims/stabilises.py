"""Claim 1: BN keeps the inputs of layers steady, and therefore training is stable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, geometric_mean
from typing import Any

from spiritlevel.study.claims.common import best_rate
from spiritlevel.study.claims.judgement import Judgement, Part, Status, agree, setting, times
from spiritlevel.study.config import Plan
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.stats import MIN_SEEDS, mean_interval, ratio_interval
from spiritlevel.study.tasks.common import steps_to

__all__ = ["CLAIM", "RULE", "cells", "drift_ratios", "judge"]

CLAIM = "stabilises"
RULE = {
    "steadier_at_least": 2.0,  # drift without BN over drift with it, mean over layers
    "noise_moves_at_least": 5.0,  # drift of noisy BN over that of BN, mean over layers
    "as_fast_at_most": 1.25,  # steps of noisy BN over those of BN
    "slower_at_least": 2.0,
    "accuracy": 0.8,
}
LRS = (1.0, 3.0, 10.0)
NOISE_LR = 1.0
IOFFE, SANTURKAR = "Ioffe & Szegedy 2015, Fig. 1", "Santurkar et al. 2018, Fig. 2"


def cells(plan: Plan) -> Iterator[Cell]:
    """none and batch at three rates each; the two noisy controls at `NOISE_LR`."""
    common = {
        "steps": plan.drift_steps,
        "every": 10,
        "batch_size": 60,
        "size": plan.size,
        "depth": 3,
        "width": 100,
    }
    for seed in plan.seeds:
        for norm in ("none", "batch"):
            for lr in LRS:
                yield Cell("drift", {"norm": norm, "lr": lr, "seed": seed, **common})
        for norm in ("noisy-batch", "noisy-none"):
            yield Cell("drift", {"norm": norm, "lr": NOISE_LR, "seed": seed, **common})


def judge(records: Records) -> Judgement:
    """Steadier, by each arm at its own best rate; and whether steadiness is what makes it fast."""
    rates = {norm: best_rate(records, "drift", norm) for norm in ("none", "batch")}
    ratios = drift_ratios(records, rates)
    steady = _steady(list(ratios.values()))
    noisy = _noisy(records)
    reason = _reason(noisy)
    overall = ratio_interval([geometric_mean(layers) for layers in ratios.values()])
    status: Status
    if steady is False:
        status = "not supported"
    elif steady is None or reason is None:
        status = "inconclusive"
    else:
        status = "supported" if reason else "partly"
    headline = Part.of("claims.stabilises.drift", overall, IOFFE, holds=steady, unit="×")
    parts = (
        headline,
        *_noise_parts(noisy, reason),
        *_equal_rates(records),
        *_context(records, rates),
        *_shift_parts(records),
    )
    return Judgement(CLAIM, status, headline, parts, _words(records, rates, overall, noisy))


def drift_ratios(records: Records, rates: dict[str, float | None]) -> dict[int, list[float]]:
    """seed -> by layer, the drift without BN over the drift with it, each arm at its best rate."""
    plain = records.by_seed("drift", norm="none", lr=rates["none"])
    normed = records.by_seed("drift", norm="batch", lr=rates["batch"])
    return {
        seed: [a / b for a, b in zip(plain[seed]["drift"], normed[seed]["drift"], strict=True)]
        for seed in sorted(plain.keys() & normed.keys())
        if all(plain[seed]["drift"]) and all(normed[seed]["drift"])
    }


def _steady(ratios: Sequence[Sequence[float]]) -> bool | None:
    """True: the interval lies above the bound, no layer is less steady. False: it lies below."""
    bound = RULE["steadier_at_least"]
    found = ratio_interval([geometric_mean(layers) for layers in ratios])
    if found is None:
        return None
    by_layer = [geometric_mean(seeds) for seeds in zip(*ratios, strict=True)]
    if found.low >= bound and min(by_layer) > 1:
        return True
    return False if found.high < bound else None


def _noisy(records: Records) -> dict[int, tuple[float, float]]:
    """seed -> (drift ratio, steps ratio) of noisy BN against BN, at the same rate."""
    noisy = records.by_seed("drift", norm="noisy-batch", lr=NOISE_LR)
    clean = records.by_seed("drift", norm="batch", lr=NOISE_LR)
    steps = max(records.values("drift", "steps"), default=0)
    found: dict[int, tuple[float, float]] = {}
    for seed in sorted(noisy.keys() & clean.keys()):
        a, b = noisy[seed], clean[seed]
        if None in a["drift"] or not all(b["drift"]):
            continue  # one of the two diverged, or never moved
        moves = fmean(x / y for x, y in zip(a["drift"], b["drift"], strict=True))
        found[seed] = (moves, _steps(a, steps) / _steps(b, steps))
    return found


def _steps(result: dict[str, Any], planned: int) -> int:
    """Steps to the accuracy of the rule; one more than planned where it was not reached."""
    return steps_to(result["accuracy"], RULE["accuracy"]) or planned + 1


def _reason(noisy: dict[int, tuple[float, float]]) -> bool | None:
    """Is steadiness the reason? False if unsteady inputs train as fast, True if slower."""
    if len(noisy) < MIN_SEEDS or any(m < RULE["noise_moves_at_least"] for m, _ in noisy.values()):
        return None
    if all(steps <= RULE["as_fast_at_most"] for _, steps in noisy.values()):
        return False
    return True if all(steps >= RULE["slower_at_least"] for _, steps in noisy.values()) else None


def _equal_rates(records: Records) -> Iterator[Part]:
    """The same ratio with both arms at one rate: steadier is not only a smaller step."""
    for lr in records.values("drift", "lr", norm="none"):
        ratios = drift_ratios(records, {"none": lr, "batch": lr})
        found = ratio_interval([geometric_mean(layers) for layers in ratios.values()])
        words = {"lr": setting(lr)}
        yield Part.of("claims.stabilises.drift_at", found, IOFFE, unit="×", words=words)


def _noise_parts(noisy: dict[int, tuple[float, float]], reason: bool | None) -> tuple[Part, Part]:
    moves = ratio_interval([m for m, _ in noisy.values()])
    steps = ratio_interval([s for _, s in noisy.values()])
    enough = agree([m >= RULE["noise_moves_at_least"] for m, _ in noisy.values()])
    return (
        Part.of("claims.stabilises.noise_moves", moves, SANTURKAR, holds=enough, unit="×"),
        Part.of("claims.stabilises.noise_steps", steps, SANTURKAR, holds=reason, unit="×"),
    )


def _context(records: Records, rates: dict[str, float | None]) -> Iterator[Part]:
    """The accuracy beside the drift: a net that does not learn is steady too."""
    for norm in ("none", "batch"):
        runs = records.by_seed("drift", norm=norm, lr=rates[norm])
        if runs:
            value = fmean(run["test_accuracy"] for run in runs.values())
            words = {"norm": norm, "lr": setting(rates[norm])}
            yield Part(
                "claims.stabilises.accuracy",
                100 * value,
                IOFFE,
                n=len(runs),
                unit=" %",
                words=words,
            )
    noise_alone = records.by_seed("drift", norm="noisy-none", lr=NOISE_LR)
    if noise_alone:
        value = fmean(run["test_accuracy"] for run in noise_alone.values())
        words = {"norm": "noisy-none", "lr": setting(NOISE_LR)}
        yield Part(
            "claims.stabilises.accuracy",
            100 * value,
            SANTURKAR,
            n=len(noise_alone),
            unit=" %",
            words=words,
        )


def _shift_parts(records: Records) -> Iterator[Part]:
    """Def. 2.1, L2 and cosine, where both arms ran at one rate: evidence, not part of the rule."""
    source = "Santurkar et al. 2018, Def. 2.1"
    for lr in records.values("landscape", "lr", norm="batch", init="he"):
        arms = {
            norm: records.by_seed("landscape", norm=norm, lr=lr, init="he")
            for norm in ("none", "batch")
        }
        seeds = sorted(arms["none"].keys() & arms["batch"].keys())
        shifts = {norm: [arm[seed]["shift_median"] for seed in seeds] for norm, arm in arms.items()}
        words = {"lr": setting(lr)}
        for quantity in ("l2", "relative"):
            ratio = ratio_interval(
                [
                    with_bn[quantity] / without[quantity]
                    if without[quantity] and with_bn[quantity] is not None
                    else None
                    for with_bn, without in zip(shifts["batch"], shifts["none"], strict=True)
                ]
            )
            yield Part.of(
                f"claims.stabilises.shift_{quantity}", ratio, source, unit="×", words=words
            )
        for norm in ("none", "batch"):
            cosine = mean_interval([shift["cosine"] for shift in shifts[norm]])
            yield Part.of(
                "claims.stabilises.shift_cosine", cosine, source, words=words | {"norm": norm}
            )


def _words(
    records: Records,
    rates: dict[str, float | None],
    overall: Any,
    noisy: dict[int, tuple[float, float]],
) -> dict[str, str]:
    moves = ratio_interval([m for m, _ in noisy.values()])
    steps = ratio_interval([s for _, s in noisy.values()])
    return {
        "ratio": times(overall),
        "rate_none": setting(rates["none"]),
        "rate_batch": setting(rates["batch"]),
        "moves": times(moves),
        "steps": times(steps),
        "noise_rate": setting(NOISE_LR),
    }
