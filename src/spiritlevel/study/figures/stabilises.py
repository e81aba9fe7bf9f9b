"""Pictures of claim 1."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.report.story import Figure, Lines, Series
from spiritlevel.study.claims.common import best_rate
from spiritlevel.study.claims.judgement import setting
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
        yield figure("stabilises.percentiles", *_percentiles(records, arms))
        yield figure("stabilises.accuracy", _drift(records, arms), _accuracy(records, arms))
    heatmaps = list(_heatmaps(records))
    if heatmaps:
        yield figure("stabilises.ghostnet", *heatmaps)


def _arms(records: Records) -> list[tuple[str, float]]:
    """(norm, rate): none at its best; BN and noisy BN at one rate, as the rule compares them."""
    rates = {
        "none": best_rate(records, "drift", "none"),
        "batch": NOISE_LR,
        "noisy-batch": NOISE_LR,
    }
    return [
        (norm, lr)
        for norm, lr in rates.items()
        if lr is not None and records.select("drift", norm=norm, lr=lr)
    ]


def _percentiles(records: Records, arms: list[tuple[str, float]]) -> list[Lines]:
    """One unit of the last hidden layer, as Ioffe & Szegedy draw it; all on one scale."""
    runs = [records.select("drift", norm=norm, lr=lr)[0] for norm, lr in arms]
    values = [v for run in runs if run.result for row in run.result["unit"] for v in row]
    known = [value for value in values if value is not None]
    y = axis("unit_input", range=(min(known), max(known)) if known else None)
    panels = []
    for (norm, _), run in zip(arms, runs, strict=True):
        assert run.result is not None
        p15, p50, p85 = zip(*run.result["unit"], strict=True)
        steps = [index * run.settings["every"] for index in range(len(p50))]
        arm = arm_of(norm)
        drawn: list[Series] = [
            series(arm, steps, p85, "thin", "labels.p15_p85"),
            series(arm, steps, p50, "line", "labels.p50"),
            series(arm, steps, p15, "thin", "labels.p15_p85"),
        ]
        panels.append(lines(f"arms.{norm}", axis("step"), y, drawn))
    return panels


def _drift(records: Records, arms: list[tuple[str, float]]) -> Lines:
    """What the headline is made of, layer by layer."""
    drawn = []
    for norm, lr in arms:
        curve = mean_curve(
            [run["drift"] for run in records.by_seed("drift", norm=norm, lr=lr).values()]
        )
        label = ["labels.at_rate", {"norm": norm, "lr": setting(lr)}]
        drawn.append(series(arm_of(norm), list(range(1, len(curve) + 1)), curve, "line", label))
    return lines("labels.layer_drift_panel", axis("layer"), axis("layer_drift", log=True), drawn)


def _accuracy(records: Records, arms: list[tuple[str, float]]) -> Lines:
    drawn = []
    for norm, lr in arms:
        runs = records.by_seed("drift", norm=norm, lr=lr).values()
        curve = mean_curve([smoothed(run["accuracy"]) for run in runs])
        index, values = thinned(curve)
        label = ["labels.at_rate", {"norm": norm, "lr": setting(lr)}]
        drawn.append(series(arm_of(norm), [SMOOTH + i for i in index], values, "line", label))
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
