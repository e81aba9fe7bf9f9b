"""Pictures of claim 1."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.report.story import Figure, Heatmap, Lines, Series
from spiritlevel.study.claims.common import best_arm
from spiritlevel.study.claims.stabilises import noise_rate
from spiritlevel.study.figures.build import (
    arm_of,
    axis,
    depth_by_time,
    figure,
    label_at,
    lines,
    mean_curve,
    series,
    thinned,
)
from spiritlevel.study.records import Record, Records
from spiritlevel.study.tasks.common import SMOOTH, smoothed

__all__ = ["figures", "ghostnet"]

_Shown = tuple[str, float, list[Record]]
"""(norm, rate, its runs)."""


def figures(records: Records) -> Iterator[Figure]:
    arms = _arms(records)
    if arms:
        read = [n for norm, lr, _ in arms for n in records.numbers("train", norm=norm, lr=lr)]
        yield figure("stabilises.percentiles", *_percentiles(arms), records=read)
        yield figure("stabilises.accuracy", _drift(arms), _accuracy(arms), records=read)


def ghostnet(records: Records) -> Iterator[Figure]:
    """What each layer is fed, from the same weights without BN and with it."""
    found = [(norm, records.select("train", norm=norm, init="default")) for norm in _PAIR]
    drawn = [_heatmap(norm, runs[0]) for norm, runs in found if runs]
    if drawn:
        read = [n for norm in _PAIR for n in records.numbers("train", norm=norm, init="default")]
        yield figure("stabilises.ghostnet", *drawn, records=read)


_PAIR = ("none", "batch")


def _arms(records: Records) -> list[_Shown]:
    """None at its best; BN and noisy BN at one rate, as the rule compares them."""
    best, noisy = best_arm(records, "none"), noise_rate(records)
    rates = {"none": best and best[1], "batch": noisy, "noisy-batch": noisy}
    found = [
        (norm, lr, records.select("train", norm=norm, lr=lr)) for norm, lr in rates.items() if lr
    ]
    return [(norm, lr, runs) for norm, lr, runs in found if runs]


def _percentiles(arms: list[_Shown]) -> list[Lines]:
    """One unit of the last hidden layer, as Ioffe & Szegedy draw it; all on one scale."""
    first = [(norm, runs[0]) for norm, _, runs in arms]
    values = [v for _, run in first if run.result for row in run.result["unit"] for v in row]
    known = [value for value in values if value is not None]
    y = axis("unit_input", range=(min(known), max(known)) if known else None)
    panels = []
    for norm, run in first:
        assert run.result is not None
        p15, p50, p85 = zip(*run.result["unit"], strict=True)
        steps, arm = run.result["steps"], arm_of(norm)
        drawn: list[Series] = [
            series(arm, steps, p85, "thin", "labels.p15_p85"),
            series(arm, steps, p50, "line", "labels.p50"),
            series(arm, steps, p15, "thin", "labels.p15_p85"),
        ]
        panels.append(lines(f"arms.{norm}", axis("step"), y, drawn))
    return panels


def _drift(arms: list[_Shown]) -> Lines:
    """What the headline is made of, layer by layer."""
    drawn = []
    for norm, lr, runs in arms:
        curve = mean_curve([run.result["drift"] for run in runs if run.result])
        label = label_at(norm, lr)
        drawn.append(series(arm_of(norm), list(range(1, len(curve) + 1)), curve, "line", label))
    return lines("labels.layer_drift_panel", axis("layer"), axis("layer_drift", log=True), drawn)


def _accuracy(arms: list[_Shown]) -> Lines:
    drawn = []
    for norm, lr, runs in arms:
        curve = mean_curve([smoothed(run.result["accuracy"]) for run in runs if run.result])
        index, values = thinned(curve)
        label = label_at(norm, lr)
        drawn.append(series(arm_of(norm), [SMOOTH + i for i in index], values, "line", label))
    return lines("labels.accuracy_panel", axis("step"), axis("accuracy", range=(0, 1)), drawn)


def _heatmap(norm: str, run: Record) -> Heatmap:
    """The deviation of what every convolution is fed."""
    assert run.result is not None
    result = run.result
    return depth_by_time(
        f"arms.{norm}",
        result["steps"],
        result["layers"],
        result["activation_std"],
        "input_deviation",
        (1e-4, 10),
    )
