"""Pictures of claim 1."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.report.story import Figure, Lines, Series
from spiritlevel.study.claims.common import best_rate
from spiritlevel.study.claims.stabilises import NOISE_LR
from spiritlevel.study.figures.build import (
    arm_of,
    axis,
    depth_by_time,
    figure,
    lines,
    mean_curve,
    series,
    thinned,
)
from spiritlevel.study.records import Records
from spiritlevel.study.tasks.common import SMOOTH, smoothed

__all__ = ["figures"]


def figures(records: Records) -> Iterator[Figure]:
    arms = _arms(records)
    if arms:
        yield figure("stabilises.percentiles", *(_percentiles(records, *arm) for arm in arms))
        yield figure("stabilises.accuracy", _accuracy(records, arms))
    heatmaps = list(_heatmaps(records))
    if heatmaps:
        yield figure("stabilises.ghostnet", *heatmaps)


def _arms(records: Records) -> list[tuple[str, float]]:
    """(norm, rate): none and batch at their best, then noisy BN."""
    rates = {
        "none": best_rate(records, "drift", "none"),
        "batch": best_rate(records, "drift", "batch"),
        "noisy-batch": NOISE_LR,
    }
    return [
        (norm, lr)
        for norm, lr in rates.items()
        if lr is not None and records.select("drift", norm=norm, lr=lr)
    ]


def _percentiles(records: Records, norm: str, lr: float) -> Lines:
    """One unit of the last hidden layer, as Ioffe & Szegedy draw it."""
    run = records.select("drift", norm=norm, lr=lr)[0]
    assert run.result is not None
    every = run.settings["every"]
    p15, p50, p85 = zip(*run.result["unit"], strict=True)
    steps = [index * every for index in range(len(p50))]
    arm = arm_of(norm)
    drawn: list[Series] = [
        series(arm, steps, p85, "thin", "labels.p15_p85"),
        series(arm, steps, p50, "line", "labels.p50"),
        series(arm, steps, p15, "thin", "labels.p15_p85"),
    ]
    return lines(f"arms.{norm}", axis("step"), axis("unit_input"), drawn)


def _accuracy(records: Records, arms: list[tuple[str, float]]) -> Lines:
    drawn = []
    for norm, lr in arms:
        runs = records.by_seed("drift", norm=norm, lr=lr).values()
        curve = mean_curve([smoothed(run["accuracy"]) for run in runs])
        index, values = thinned(curve)
        drawn.append(series(arm_of(norm), [SMOOTH + i for i in index], values))
    return lines("labels.accuracy_panel", axis("step"), axis("accuracy", range=(0, 1)), drawn)


def _heatmaps(records: Records) -> Iterator[object]:
    """The deviation of what every convolution of GhostNet is fed, without BN and with it."""
    for norm in ("none", "batch"):
        runs = records.select("ghostnet", norm=norm, init="default")
        if runs and runs[0].result:
            result = runs[0].result
            yield depth_by_time(
                f"arms.{norm}",
                result["steps"],
                result["layers"],
                result["activation_std"],
                "input_deviation",
                (1e-4, 10),
            )
