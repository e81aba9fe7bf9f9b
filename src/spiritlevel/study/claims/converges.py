"""Claim 2: nets with BN converge faster, at larger learning rates."""

from __future__ import annotations

from collections.abc import Iterator
from math import log10
from statistics import geometric_mean

from spiritlevel.study.claims.common import best_rate
from spiritlevel.study.claims.judgement import Judgement, Part, Status, setting, times
from spiritlevel.study.config import Plan
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.stats import MIN_SEEDS, Interval, ratio_interval
from spiritlevel.study.tasks.common import steps_to

__all__ = ["CLAIM", "RULE", "cells", "judge", "landscape_cells", "largest_rate"]

CLAIM = "converges"
RULE = {
    "trained_below": 0.5,  # final training loss, nats, for ten classes: a fifth of chance, ln 10
    "rate_ratio_at_least": 3.0,
    "step_ratio_at_least": 1.5,
    "ghostnet_accuracy": 0.5,
}
LANDSCAPE_LRS = (0.03, 0.1)
BJORCK, SANTURKAR = "Bjorck et al. 2018, Fig. 1", "Santurkar et al. 2018, Fig. 4"
IOFFE = "Ioffe & Szegedy 2015, Fig. 2"


def cells(plan: Plan) -> Iterator[Cell]:
    """The sweep; landscapes at two rates all arms survive, with two initialisations; GhostNet."""
    common = {"model": "small_vgg", "batch_size": 64, "size": plan.size}
    for seed in plan.seeds:
        for norm in plan.norms:
            for lr in plan.lrs:
                run = {
                    "norm": norm,
                    "lr": lr,
                    "seed": seed,
                    "init": "he",
                    "steps": plan.sweep_steps,
                }
                yield Cell("sweep", common | run)
    yield from landscape_cells(plan)
    yield from _ghostnet_cells(plan)


def landscape_cells(plan: Plan) -> Iterator[Cell]:
    """At two rates that both arms survive, from two initialisations; claims 1 and 5 read them."""
    arms = [(norm, LANDSCAPE_LRS[0], "he") for norm in plan.norms]
    arms += [
        (norm, LANDSCAPE_LRS[1], init) for norm in ("none", "batch") for init in ("he", "xavier")
    ]
    for seed in plan.seeds:
        for norm, lr, init in arms:
            yield Cell(
                "landscape",
                {
                    "model": "small_vgg",
                    "norm": norm,
                    "init": init,
                    "lr": lr,
                    "seed": seed,
                    "steps": plan.landscape_steps,
                    "every": 20,
                    "batch_size": 64,
                    "size": plan.size,
                },
            )


# Without BN each initialisation gets the rates at which a trial found it to do anything at all.
GHOSTNET_ARMS = (
    ("batch", "default", (0.03,)),
    ("none", "default", (0.1, 1.0)),
    ("none", "he", (1e-6, 1e-4)),
    ("none", "he+zero", (0.0003, 0.001)),
)


def _ghostnet_cells(plan: Plan) -> Iterator[Cell]:
    for seed in plan.seeds:
        for norm, init, lrs in GHOSTNET_ARMS:
            for lr in lrs:
                yield Cell(
                    "ghostnet",
                    {
                        "model": plan.ghost_model,
                        "norm": norm,
                        "init": init,
                        "lr": lr,
                        "seed": seed,
                        "steps": plan.ghost_steps,
                        "every": 6,
                        "batch_size": 32,
                        "momentum": 0.9,
                        "size": 32,
                    },
                )


def judge(records: Records) -> Judgement:
    """A larger rate, and fewer steps to the accuracy that the net without BN ends at."""
    rate_ratio, rate_holds = _rates(records)
    steps = _steps(records)
    speed = ratio_interval([none / batch for none, batch in steps.values()])
    speed_holds = _faster(speed)
    status: Status
    nothing_to_compare = rate_ratio is None and rate_holds is None
    undecided = (rate_holds is None and not speed_holds) or (speed_holds is None and not rate_holds)
    if nothing_to_compare or undecided:
        status = "inconclusive"
    elif rate_holds and speed_holds:
        status = "supported"
    else:
        status = "partly" if rate_holds or speed_holds else "not supported"
    headline = Part.of("claims.converges.steps", speed, IOFFE, holds=speed_holds, unit="×")
    rate = Part(
        "claims.converges.rate", rate_ratio, BJORCK, holds=rate_holds, unit="×", n=len(steps)
    )
    parts = (headline, rate, *_largest(records), *_landscape(records), *_ghostnet(records))
    return Judgement(CLAIM, status, headline, parts, _words(records, speed, rate_ratio))


def largest_rate(records: Records, norm: str, seed: int) -> float | None:
    """The largest rate of the sweep at which this seed trains; None where it trains at none."""
    runs = [
        record for record in records.select("sweep", norm=norm) if record.settings["seed"] == seed
    ]
    trained = [
        record.settings["lr"]
        for record in runs
        if record.result
        and record.result["final_loss"] is not None
        and record.result["final_loss"] < RULE["trained_below"] * log10(record.result["classes"])
    ]
    return max(trained, default=None)


def _rates(records: Records) -> tuple[float | None, bool | None]:
    """By seed, the largest rate with BN over that without; a lower bound at the grid's end."""
    end = max(records.values("sweep", "lr"), default=None)
    ratios: list[float] = []
    for seed in records.values("sweep", "seed", norm="batch"):
        with_bn, without = (largest_rate(records, norm, seed) for norm in ("batch", "none"))
        if without is None or without == end:
            return None, None  # it trains nowhere, or beyond the grid: nothing to compare with
        ratios.append(0.0 if with_bn is None else with_bn / without)
    if len(ratios) < MIN_SEEDS:
        return None, None
    bound = RULE["rate_ratio_at_least"] * (1 - 1e-9)  # 0.3 / 0.1 is a rounding error short of 3
    holds = [ratio >= bound for ratio in ratios]
    mean = geometric_mean(ratios) if all(ratios) else None
    return mean, holds[0] if len(set(holds)) == 1 else None


def _steps(records: Records) -> dict[int, tuple[int, int]]:
    """seed -> steps without and with BN, each at its best rate, to where the net without ends."""
    rates = {norm: best_rate(records, "sweep", norm) for norm in ("none", "batch")}
    plain = records.by_seed("sweep", norm="none", lr=rates["none"])
    normed = records.by_seed("sweep", norm="batch", lr=rates["batch"])
    planned = max(records.values("sweep", "steps"), default=0)
    found: dict[int, tuple[int, int]] = {}
    for seed in sorted(plain.keys() & normed.keys()):
        target = plain[seed]["final_accuracy"]
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
    seeds = records.values("sweep", "seed")
    for norm in records.values("sweep", "norm"):
        by_seed = [largest_rate(records, norm, seed) for seed in seeds]
        value = None if None in by_seed else min(rate for rate in by_seed if rate is not None)
        words = {"norm": norm}
        yield Part(
            "claims.converges.largest", value, BJORCK, n=len(seeds), words=words, chosen=True
        )


def _landscape(records: Records) -> Iterator[Part]:
    """Loss range, gradient change and beta: without BN over with it, at the smaller rate."""
    arms = {
        norm: records.by_seed("landscape", norm=norm, lr=LANDSCAPE_LRS[0], init="he")
        for norm in ("none", "batch")
    }
    seeds = sorted(arms["none"].keys() & arms["batch"].keys())
    for quantity in ("loss_range", "gradient_change", "beta", "beta_norm2"):
        pairs = [
            [arms[norm][seed]["median"][quantity] for norm in ("none", "batch")] for seed in seeds
        ]
        ratio = ratio_interval([a / b if a is not None and b else None for a, b in pairs])
        yield Part.of(f"claims.converges.{quantity}", ratio, SANTURKAR, unit="×")


def _ghostnet(records: Records) -> Iterator[Part]:
    """The best rate of each arm: how many seeds reach the accuracy of the rule."""
    for norm, init, lrs in GHOSTNET_ARMS:
        runs = {lr: records.by_seed("ghostnet", norm=norm, init=init, lr=lr) for lr in lrs}
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
                "Han et al. 2020" if norm == "batch" else "control: no norm",
                n=len(runs[best]),
                unit=" %",
                words={
                    "init": init,
                    "lr": setting(best),
                    "reached": str(reached[best]),
                    "seeds": str(len(runs[best])),
                },
            )


def _mean_accuracy(by_seed: dict[int, dict[str, float]]) -> float:
    return sum(run["final_accuracy"] for run in by_seed.values()) / max(1, len(by_seed))


def _words(records: Records, speed: Interval | None, ratio: float | None) -> dict[str, str]:
    rates = {norm: best_rate(records, "sweep", norm) for norm in ("none", "batch")}
    return {
        "speed": times(speed),
        "ratio": times(ratio),
        "rate_none": setting(rates["none"]),
        "rate_batch": setting(rates["batch"]),
        "norms": ", ".join(records.values("sweep", "norm")),
    }
