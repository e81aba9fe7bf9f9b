"""Claim 1: BN keeps the inputs of layers steady, and therefore training is stable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, geometric_mean
from typing import Any

from spiritlevel.study.claims.common import (
    Arm,
    arm_numbers,
    arm_runs,
    best_arm,
    landscape_cells,
    shape,
    training_cell,
    training_cells,
)
from spiritlevel.study.claims.judgement import (
    PERCENT,
    Judgement,
    Part,
    Status,
    agree,
    setting,
    times,
)
from spiritlevel.study.config import Plan
from spiritlevel.study.networks import init_title, network
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.stats import MIN_SEEDS, mean_interval, ratio_interval
from spiritlevel.study.tasks.common import steps_to

__all__ = ["CLAIM", "NETWORK", "RULE", "cells", "drift_ratios", "judge", "noise_rate"]

CLAIM = "stabilises"
NETWORK = ("sigmoid_mlp",)
RULE = {
    "steadier_at_least": 2.0,  # drift without BN over drift with it, mean over layers
    "steadier_layers": 0.9,  # share of the layers that are steadier at all
    "noise_moves_at_least": 5.0,  # drift of noisy BN over that of BN, mean over layers
    "as_fast_at_most": 1.25,  # steps of noisy BN over those of BN
    "slower_at_least": 2.0,
    "share_of_gain": 0.8,  # of BN's way from chance to its final accuracy
}
LRS = (1.0, 3.0, 10.0)
IOFFE, SANTURKAR = "Ioffe & Szegedy 2015, Fig. 1", "Santurkar et al. 2018, Fig. 2"


def cells(plan: Plan) -> Iterator[Cell]:
    """none and batch at several rates each; the noisy controls at one."""
    for name in plan.networks:
        yield from training_cells(plan, name)
        yield from landscape_cells(plan, name)
        for seed in plan.seeds:
            arm = {"init": network(name).inits[0], "lr": network(name).rate, "seed": seed}
            for norm in ("batch", "noisy-batch"):
                yield training_cell(plan, name, norm=norm, **arm)
    if not plan.networks:
        yield from _sigmoid_cells(plan, *NETWORK)


def _sigmoid_cells(plan: Plan, name: str) -> Iterator[Cell]:
    """The network of Ioffe & Szegedy's figure."""
    sizes = {"steps": plan.drift_steps, "every": 10, "batch_size": 60, "init": "xavier"}
    common = shape(plan, name) | sizes
    for seed in plan.seeds:
        for norm in ("none", "batch"):
            for lr in LRS:
                yield Cell("train", common | {"norm": norm, "lr": lr, "seed": seed})
        for norm in ("noisy-batch", "noisy-none"):
            yield Cell("train", common | {"norm": norm, "lr": network(name).rate, "seed": seed})


def judge(records: Records) -> Judgement:
    """Steadier, by each arm at its own best rate; and whether steadiness is what makes it fast."""
    arms = {norm: best_arm(records, norm) for norm in ("none", "batch")}
    ratios = drift_ratios(records, arms)
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
    read = arm_numbers(records, arms)
    headline = Part.of(
        "claims.stabilises.drift", overall, IOFFE, holds=steady, unit="×", records=read
    )
    parts = (
        headline,
        *_noise_parts(records, noisy, reason),
        *_equal_rates(records),
        *_context(records, arms),
        *_shift_parts(records),
    )
    return Judgement(CLAIM, status, headline, parts, _words(records, arms, overall, noisy))


def noise_rate(records: Records) -> float | None:
    """The rate at which the noisy control runs, and BN is compared with it."""
    return next(iter(records.values("train", "lr", norm="noisy-batch")), None)


def drift_ratios(records: Records, arms: dict[str, Arm | None]) -> dict[int, list[float]]:
    """seed -> by layer, the drift without BN over the drift with it, each arm at its best."""
    plain, normed = (arm_runs(records, norm, arms[norm]) for norm in ("none", "batch"))
    return {
        seed: [a / b for a, b in zip(plain[seed]["drift"], normed[seed]["drift"], strict=True)]
        for seed in sorted(plain.keys() & normed.keys())
        if all(plain[seed]["drift"]) and all(normed[seed]["drift"])
    }


def _steady(ratios: Sequence[Sequence[float]]) -> bool | None:
    """True: the interval lies above the bound, and nearly every layer is steadier. False: below."""
    bound = RULE["steadier_at_least"]
    found = ratio_interval([geometric_mean(layers) for layers in ratios])
    if found is None:
        return None
    by_layer = [geometric_mean(seeds) > 1 for seeds in zip(*ratios, strict=True)]
    if found.low >= bound and fmean(by_layer) >= RULE["steadier_layers"]:
        return True
    return False if found.high < bound else None


def _noisy(records: Records) -> dict[int, tuple[float, float]]:
    """seed -> (drift ratio, steps ratio) of noisy BN against BN, at the same rate."""
    lr = noise_rate(records)
    noisy = records.by_seed("train", norm="noisy-batch", lr=lr)
    clean = records.by_seed("train", norm="batch", lr=lr)
    steps = max(records.values("train", "steps", norm="noisy-batch"), default=0)
    found: dict[int, tuple[float, float]] = {}
    for seed in sorted(noisy.keys() & clean.keys()):
        a, b = noisy[seed], clean[seed]
        if None in a["drift"] or not all(b["drift"]):
            continue  # one of the two diverged, or never moved
        moves = fmean(x / y for x, y in zip(a["drift"], b["drift"], strict=True))
        chance = 1 / b["classes"]
        if b["final_accuracy"] <= chance:
            continue  # no way was gone, so none of it in fewer steps
        target = chance + RULE["share_of_gain"] * (b["final_accuracy"] - chance)
        found[seed] = (moves, _steps(a, target, steps) / _steps(b, target, steps))
    return found


def _steps(result: dict[str, Any], target: float, planned: int) -> int:
    """Steps to the target; one more than planned where it was not reached."""
    return steps_to(result["accuracy"], target) or planned + 1


def _reason(noisy: dict[int, tuple[float, float]]) -> bool | None:
    """Is steadiness the reason? False if unsteady inputs train as fast, True if slower."""
    if len(noisy) < MIN_SEEDS or any(m < RULE["noise_moves_at_least"] for m, _ in noisy.values()):
        return None
    if all(steps <= RULE["as_fast_at_most"] for _, steps in noisy.values()):
        return False
    return True if all(steps >= RULE["slower_at_least"] for _, steps in noisy.values()) else None


def _equal_rates(records: Records) -> Iterator[Part]:
    """The same ratio with both arms at one rate: steadier is not only a smaller step."""
    init = next(iter(records.values("train", "init", norm="batch")), "")
    for lr in records.values("train", "lr", norm="none", init=init):
        arms: dict[str, Arm | None] = {"none": (init, lr), "batch": (init, lr)}
        ratios = drift_ratios(records, arms)
        found = ratio_interval([geometric_mean(layers) for layers in ratios.values()])
        more: dict[str, Any] = {"words": {"lr": setting(lr)}, "records": arm_numbers(records, arms)}
        yield Part.of("claims.stabilises.drift_at", found, IOFFE, unit="×", **more)


def _noise_parts(
    records: Records, noisy: dict[int, tuple[float, float]], reason: bool | None
) -> Iterator[Part]:
    lr = noise_rate(records)
    read = tuple(
        n for norm in ("batch", "noisy-batch") for n in records.numbers("train", norm=norm, lr=lr)
    )
    unit: dict[str, Any] = {"unit": "×", "records": read}
    moves = ratio_interval([m for m, _ in noisy.values()])
    steps = ratio_interval([s for _, s in noisy.values()])
    enough = agree([m >= RULE["noise_moves_at_least"] for m, _ in noisy.values()])
    yield Part.of("claims.stabilises.noise_moves", moves, SANTURKAR, holds=enough, **unit)
    yield Part.of("claims.stabilises.noise_steps", steps, SANTURKAR, holds=reason, **unit)


def _context(records: Records, arms: dict[str, Arm | None]) -> Iterator[Part]:
    """The accuracy beside the drift: a net that does not learn is steady too."""
    lr = noise_rate(records)
    told = [(norm, arm, IOFFE) for norm, arm in arms.items() if arm is not None]
    inits = records.values("train", "init", norm="noisy-none")
    told += [("noisy-none", (init, lr), SANTURKAR) for init in inits if lr is not None]
    for norm, arm, source in told:
        runs = arm_runs(records, norm, arm)
        if runs:
            value = 100 * fmean(run["test_accuracy_batch"] for run in runs.values())
            words = {"norm": norm, "lr": setting(arm[1])}
            yield Part(
                "claims.stabilises.accuracy",
                value,
                source,
                n=len(runs),
                unit=PERCENT,
                words=words,
                records=arm_numbers(records, {norm: arm}),
            )


def _shift_parts(records: Records) -> Iterator[Part]:
    """Def. 2.1, L2 and cosine, where both arms ran at one rate: evidence, not part of the rule."""
    source = "Santurkar et al. 2018, Def. 2.1"
    pairs = {
        (r.settings["lr"], r.settings["init"]) for r in records.select("landscape", norm="batch")
    }
    for lr, init in sorted(pairs):
        arms = {
            norm: records.by_seed("landscape", norm=norm, lr=lr, init=init)
            for norm in ("none", "batch")
        }
        seeds = sorted(arms["none"].keys() & arms["batch"].keys())
        shifts = {norm: [arm[seed]["shift_median"] for seed in seeds] for norm, arm in arms.items()}
        words = {"lr": setting(lr), "init": init_title(init)}
        read = {
            norm: tuple(records.numbers("landscape", norm=norm, lr=lr, init=init)) for norm in arms
        }
        both = (*read["none"], *read["batch"])
        for quantity in ("l2", "relative"):
            ratio = ratio_interval(
                [
                    with_bn[quantity] / without[quantity]
                    if without[quantity] and with_bn[quantity] is not None
                    else None
                    for with_bn, without in zip(shifts["batch"], shifts["none"], strict=True)
                ]
            )
            name = f"claims.stabilises.shift_{quantity}"
            yield Part.of(name, ratio, source, unit="×", words=words, records=both)
        for norm in ("none", "batch"):
            cosine = mean_interval([shift["cosine"] for shift in shifts[norm]])
            more: dict[str, Any] = {"words": words | {"norm": norm}, "records": read[norm]}
            yield Part.of("claims.stabilises.shift_cosine", cosine, source, **more)


def _words(
    records: Records,
    arms: dict[str, Arm | None],
    overall: Any,
    noisy: dict[int, tuple[float, float]],
) -> dict[str, str]:
    moves = ratio_interval([m for m, _ in noisy.values()])
    steps = ratio_interval([s for _, s in noisy.values()])
    none, batch = (arms[norm] for norm in ("none", "batch"))
    return {
        "ratio": times(overall),
        "rate_none": setting(none and none[1]),
        "rate_batch": setting(batch and batch[1]),
        "moves": times(moves),
        "steps": times(steps),
        "noise_rate": setting(noise_rate(records)),
    }
