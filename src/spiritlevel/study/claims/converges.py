"""Claim 2: nets with BN converge faster, at larger learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import geometric_mean

from spiritlevel.catalogue import joined, say
from spiritlevel.study.claims.common import (
    arm_numbers,
    arm_runs,
    best_arm,
    grid,
    landscape_cells,
    mean_final_loss,
    norms,
    shape,
    training_cells,
)
from spiritlevel.study.claims.judgement import PERCENT, Judgement, Part, Status, setting, times
from spiritlevel.study.config import Plan
from spiritlevel.study.networks import init_title
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.stats import MIN_SEEDS, Interval, ratio_interval
from spiritlevel.study.tasks.common import steps_to

__all__ = [
    "CLAIM",
    "NETWORK",
    "RULE",
    "cells",
    "ghostnet_arms",
    "judge",
    "largest_rate",
    "trained_below",
]

CLAIM = "converges"
NETWORK = ("small_vgg",)
RULE = {
    "share_of_way": 0.3,  # from chance, ln(classes), to the least mean final loss of all arms
    "rate_ratio_at_least": 3.0,
    "step_ratio_at_least": 1.5,
    "ghostnet_accuracy": 0.5,
}
BJORCK, SANTURKAR = "Bjorck et al. 2018, Fig. 1", "Santurkar et al. 2018, Fig. 4"
IOFFE = "Ioffe & Szegedy 2015, Fig. 2"


def cells(plan: Plan) -> Iterator[Cell]:
    """The grid of norms and rates; the landscape; and, beside the small network, GhostNet."""
    for name in plan.networks or NETWORK:
        yield from training_cells(plan, name)
        yield from landscape_cells(plan, name)
    if not plan.networks:
        yield from _ghostnet_cells(plan)


# Without BN each initialisation gets the rates at which a trial found it to do anything at all.
GHOSTNET_ARMS = (
    ("batch", "default", (0.03,)),
    ("none", "default", (0.1, 1.0)),
    ("none", "he", (1e-6, 1e-4)),
    ("none", "he+zero", (0.0003, 0.001)),
)


def _ghostnet_cells(plan: Plan) -> Iterator[Cell]:
    sizes = {"steps": plan.ghost_steps, "every": 6, "batch_size": 32, "momentum": 0.9, "size": 32}
    for seed in plan.seeds:
        for norm, init, lrs in GHOSTNET_ARMS:
            for lr in lrs:
                run = {"norm": norm, "init": init, "lr": lr, "seed": seed}
                yield Cell("train", shape(plan, plan.ghost_model) | sizes | run)


def judge(records: Records) -> Judgement:
    """A larger rate, and fewer steps to the accuracy that the net without BN ends at."""
    rate_ratio, rate_holds, seeds = _rates(records)
    steps = _steps(records)
    speed = ratio_interval([none / batch for none, batch in steps.values()])
    speed_holds = _faster(speed)
    status: Status
    undecided = (rate_holds is None and not speed_holds) or (speed_holds is None and not rate_holds)
    if undecided:
        status = "inconclusive"
    elif rate_holds and speed_holds:
        status = "supported"
    else:
        status = "partly" if rate_holds or speed_holds else "not supported"
    best = arm_numbers(records, {norm: best_arm(records, norm) for norm in ("none", "batch")})
    headline = Part.of(
        "claims.converges.steps", speed, IOFFE, holds=speed_holds, unit="×", records=best
    )
    rate = Part(
        "claims.converges.rate",
        rate_ratio,
        BJORCK,
        holds=rate_holds,
        unit="×",
        n=seeds,
        records=_numbers(records, *norms(records)),
    )
    parts = (headline, rate, *_largest(records), *_landscape(records))
    return Judgement(CLAIM, status, headline, parts, _words(records, speed, rate_ratio))


def trained_below(records: Records) -> float | None:
    """The final loss below which a run has trained: part of the way from chance to the best arm."""
    arms = {norm: best_arm(records, norm) for norm in norms(records)}
    losses = [
        mean_final_loss(records, "train", norm=norm, init=arm[0], lr=arm[1])
        for norm, arm in arms.items()
        if arm is not None
    ]
    best = min(losses, default=math.inf)
    classes = [r.result["classes"] for r in records.select("train") if r.result]
    if not classes or best == math.inf:
        return None
    chance = math.log(max(classes))
    return chance - RULE["share_of_way"] * max(0.0, chance - best)


def largest_rate(records: Records, norm: str, seed: int) -> float | None:
    """The largest rate of the grid at which this seed trains; None where it trains at none."""
    bound = trained_below(records)
    trained = [
        record.settings["lr"]
        for record in records.select("train", norm=norm, seed=seed)
        if bound is not None
        and record.settings["lr"] in grid(records)
        and record.result
        and record.result["final_loss"] is not None
        and record.result["final_loss"] < bound
    ]
    return max(trained, default=None)


def _rates(records: Records) -> tuple[float | None, bool | None, int]:
    """The ratio of the largest rates with BN and without, whether it holds, and of how many seeds.

    At the grid's end a rate with BN is a lower bound, which can hold but not refute.
    """
    end = max(grid(records), default=None)
    ratios: list[float] = []
    holds: list[bool | None] = []
    bound = RULE["rate_ratio_at_least"] * (1 - 1e-9)  # 0.3 / 0.1 is a rounding error short of 3
    for seed in records.values("train", "seed", norm="batch"):
        with_bn, without = (largest_rate(records, norm, seed) for norm in ("batch", "none"))
        if without is None or without == end:
            return None, None, 0  # it trains nowhere, or beyond the grid: nothing to compare with
        ratios.append(0.0 if with_bn is None else with_bn / without)
        holds.append(True if ratios[-1] >= bound else None if with_bn == end else False)
    if len(ratios) < MIN_SEEDS:
        return None, None, len(ratios)
    mean = geometric_mean(ratios) if all(ratios) else None
    return mean, holds[0] if len(set(holds)) == 1 else None, len(ratios)


def _steps(records: Records) -> dict[int, tuple[int, int]]:
    """seed -> steps without and with BN, each at its best, to where the net without ends."""
    plain, normed = (arm_runs(records, norm, best_arm(records, norm)) for norm in ("none", "batch"))
    planned = max(records.values("train", "steps"), default=0)
    found: dict[int, tuple[int, int]] = {}
    for seed in sorted(plain.keys() & normed.keys()):
        target = plain[seed]["final_accuracy"]
        if target <= 1 / plain[seed]["classes"]:
            continue  # at chance there is no way to have come
        none, batch = (
            steps_to(run["accuracy"], target) or planned + 1 for run in (plain[seed], normed[seed])
        )
        found[seed] = (none, batch)
    return found


def _faster(speed: Interval | None) -> bool | None:
    if speed is None:
        return None
    if speed.value >= RULE["step_ratio_at_least"] and speed.low > 1:
        return True
    return False if speed.high < RULE["step_ratio_at_least"] else None


def _largest(records: Records) -> Iterator[Part]:
    """For each norm, the largest rate at which every seed trains."""
    seeds = records.values("train", "seed")
    for norm in norms(records):
        by_seed = [largest_rate(records, norm, seed) for seed in seeds]
        value = None if None in by_seed else min(rate for rate in by_seed if rate is not None)
        yield Part(
            "claims.converges.largest",
            value,
            BJORCK,
            n=len(seeds),
            words={"norm": norm},
            chosen=True,
            records=_numbers(records, norm),
        )


def _numbers(records: Records, *of: str) -> tuple[int, ...]:
    """All training runs with these norms."""
    return tuple(number for norm in of for number in records.numbers("train", norm=norm))


def _landscape(records: Records) -> Iterator[Part]:
    """Loss range, gradient change and beta: without BN over with it, at the smallest rate."""
    lr = min(records.values("landscape", "lr"), default=None)
    init = next(iter(records.values("landscape", "init", lr=lr)), None)
    arms = {
        norm: records.by_seed("landscape", norm=norm, lr=lr, init=init)
        for norm in ("none", "batch")
    }
    seeds = sorted(arms["none"].keys() & arms["batch"].keys())
    read = tuple(
        n
        for norm in ("none", "batch")
        for n in records.numbers("landscape", norm=norm, lr=lr, init=init)
    )
    for quantity in ("loss_range", "gradient_change", "beta", "beta_norm2"):
        pairs = [
            [arms[norm][seed]["median"][quantity] for norm in ("none", "batch")] for seed in seeds
        ]
        ratio = ratio_interval([a / b if a is not None and b else None for a, b in pairs])
        yield Part.of(f"claims.converges.{quantity}", ratio, SANTURKAR, unit="×", records=read)


def ghostnet_arms(records: Records) -> Iterator[Part]:
    """The best rate of each arm of the article's network: how many seeds reach the accuracy."""
    for norm, init, lrs in GHOSTNET_ARMS:
        runs = {lr: records.by_seed("train", norm=norm, init=init, lr=lr) for lr in lrs}
        reached = {
            lr: sum(run["final_accuracy"] >= RULE["ghostnet_accuracy"] for run in by_seed.values())
            for lr, by_seed in runs.items()
        }
        best = max(lrs, key=lambda lr: (reached[lr], _mean_accuracy(runs[lr])))
        if runs[best]:
            diverged = all(run["diverged_at"] is not None for run in runs[best].values())
            yield Part(
                f"claims.converges.ghostnet_{norm}",
                None if diverged else 100 * _mean_accuracy(runs[best]),
                "Han et al. 2020" if norm == "batch" else say("claims.sources.no_norm"),
                n=len(runs[best]),
                unit=PERCENT,
                words={
                    "init": init_title(init),
                    "lr": setting(best),
                    "reached": str(reached[best]),
                    "seeds": str(len(runs[best])),
                },
                records=arm_numbers(records, {norm: (init, best)}),
            )


def _mean_accuracy(by_seed: dict[int, dict[str, float]]) -> float:
    return sum(run["final_accuracy"] for run in by_seed.values()) / max(1, len(by_seed))


def _words(records: Records, speed: Interval | None, ratio: float | None) -> dict[str, str]:
    arms = {norm: best_arm(records, norm) for norm in ("none", "batch")}
    rates = {norm: None if arm is None else arm[1] for norm, arm in arms.items()}
    return {
        "speed": times(speed),
        "larger": say("claims.converges.no_larger")
        if ratio is None
        else say("claims.converges.larger", ratio=times(ratio)),
        "rate_none": setting(rates["none"]),
        "rate_batch": setting(rates["batch"]),
        "norms": joined("list", norms(records)),
    }
