"""What several claims ask of the plan and of the records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from spiritlevel.study.config import Plan
from spiritlevel.study.networks import network
from spiritlevel.study.records import Cell, Records

__all__ = [
    "Arm",
    "arm_numbers",
    "arm_runs",
    "best_arm",
    "grid",
    "landscape_cells",
    "mean_final_loss",
    "norms",
    "shape",
    "training_cell",
    "training_cells",
    "weights",
]

Arm = tuple[str, float]
"""(initial weights, learning rate)."""


def shape(plan: Plan, name: str) -> dict[str, Any]:
    """What all cells of a network share."""
    return {"network": name, "batch_size": plan.batch_size, "size": plan.size, **plan.fed}


def weights(name: str, norm: str) -> str:
    """The initial weights that an arm is given: without a norm those that help it most."""
    inits = network(name).inits
    return inits[-1] if norm == "none" else inits[0]


def training_cell(plan: Plan, name: str, **arm: Any) -> Cell:
    """`arm`: norm, init, lr, seed."""
    sizes = {"steps": plan.sweep_steps, "every": plan.every}
    return Cell("train", shape(plan, name) | sizes | arm)


def training_cells(plan: Plan, name: str) -> Iterator[Cell]:
    """The grid of a network: norm by rate by seed."""
    for seed in plan.seeds:
        for norm in plan.norms:
            small = network(name).small_rates if norm == "none" else ()
            for lr in (*small, *plan.lrs):
                init = weights(name, norm)
                yield training_cell(plan, name, norm=norm, init=init, lr=lr, seed=seed)


def landscape_cells(plan: Plan, name: str) -> Iterator[Cell]:
    """At rates and weights that arms with and without a norm survive."""
    pairs = network(name).landscape
    arms = [(norm, *pair) for norm in ("none", "batch") for pair in pairs]
    arms += [(norm, *pairs[0]) for norm in plan.norms if norm not in ("none", "batch")]
    sizes = {"steps": plan.landscape_steps, "every": 20}
    for seed in plan.seeds:
        for norm, lr, init in arms:
            run = {"norm": norm, "init": init, "lr": lr, "seed": seed}
            yield Cell("landscape", shape(plan, name) | sizes | run)


def norms(records: Records) -> list[str]:
    """Those that were trained on the grid; the noisy controls run at one rate."""
    return [n for n in records.values("train", "norm") if not n.startswith("noisy")]


def mean_final_loss(records: Records, task: str, **settings: object) -> float:
    """The final training loss, mean over seeds; infinite where a run diverged or none is there."""
    runs = records.select(task, **settings)
    losses = [run.result["final_loss"] for run in runs if run.result is not None]
    return math.inf if not losses or None in losses else fmean(losses)


def grid(records: Records) -> list[float]:
    """The learning rates of the grid. Claim 1 runs BN beside its noisy twin at another, maybe."""
    return records.values("train", "lr", norm="none")


def arm_numbers(records: Records, arms: Mapping[str, Arm | None]) -> tuple[int, ...]:
    """Where the training runs of these norms, each from its weights at its rate, stand."""
    return tuple(
        number
        for norm, arm in arms.items()
        if arm is not None
        for number in records.numbers("train", norm=norm, init=arm[0], lr=arm[1])
    )


def arm_runs(records: Records, norm: str, arm: Arm | None) -> dict[int, dict[str, Any]]:
    """seed -> what came of the norm's training run from these weights at this rate."""
    return {} if arm is None else records.by_seed("train", norm=norm, init=arm[0], lr=arm[1])


def best_arm(records: Records, norm: str, **settings: object) -> Arm | None:
    """The initial weights and rate from which a norm ends with the least training loss.

    None if it never ran. Rates count at which the net without a norm ran, too: others are not of
    the grid.
    """
    found = {
        (r.settings["init"], r.settings["lr"])
        for r in records.select("train", norm=norm, **settings)
        if r.settings["lr"] in grid(records)
    }
    return min(
        sorted(found),
        key=lambda arm: mean_final_loss(
            records, "train", norm=norm, init=arm[0], lr=arm[1], **settings
        ),
        default=None,
    )
