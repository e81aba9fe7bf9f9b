"""Pictures of claim 2."""

from __future__ import annotations

import math
from collections.abc import Iterator

from spiritlevel.report.story import Axis, Figure, Guide, Lines, Panels, Series
from spiritlevel.study.claims.common import best_arm, mean_final_loss, norms
from spiritlevel.study.claims.converges import trained_below
from spiritlevel.study.claims.judgement import number, setting
from spiritlevel.study.figures.build import (
    arm_of,
    axis,
    figure,
    guide,
    label_at,
    lines,
    mean_curve,
    rate_slider,
    series,
    slider,
    thinned,
)
from spiritlevel.study.networks import init_title
from spiritlevel.study.records import Record, Records
from spiritlevel.study.tasks.common import SMOOTH, smoothed

__all__ = ["figures", "ghostnet"]

_OFF_CHART = 1e3
"""Losses beyond it are on their way to infinity, and would flatten the rest."""
_QUANTITIES = ("loss_range", "gradient_change", "beta_norm2")


def figures(records: Records) -> Iterator[Figure]:
    drawn = norms(records)
    if drawn:
        read = [n for norm in drawn for n in records.numbers("train", norm=norm)]
        bound = trained_below(records)
        panels = _rates(records, drawn, bound), _accuracy(records, drawn)
        yield figure("converges.rates", *panels, records=read, trained=number(bound))
        yield _curves(records, drawn, read)
    rates = records.values("landscape", "lr", norm="batch")
    if rates:
        frames = [_landscape(records, lr) for lr in rates]
        controls = [slider("lr", [setting(lr) for lr in rates])]
        read = records.numbers("landscape")
        yield figure("converges.landscape", records=read, controls=controls, frames=frames)


def ghostnet(records: Records) -> Iterator[Figure]:
    """The article's network: each arm at its first seed."""
    if records.select("train"):
        panel = _ghostnet(records)
        yield figure("converges.ghostnet", panel, records=records.numbers("train"))


def _rates(records: Records, drawn_norms: list[str], bound: float | None) -> Lines:
    """Final loss over learning rate: a line through means, a dot a seed; none where it diverged."""
    drawn: list[Series] = []
    for norm in drawn_norms:
        rates = records.values("train", "lr", norm=norm)
        means = [mean_final_loss(records, "train", norm=norm, lr=lr) for lr in rates]
        drawn.append(
            series(arm_of(norm), rates, [m if m < float("inf") else None for m in means], "line")
        )
        runs = records.select("train", norm=norm)
        dots = [run.result["final_loss"] if run.result else None for run in runs]
        drawn.append(series(arm_of(norm), [run.settings["lr"] for run in runs], dots, "dots"))
    guides: list[Guide] = [] if bound is None else [guide("y", bound, "trained")]
    return lines(
        "labels.rates_panel", axis("lr", log=True), axis("final_loss", log=True), drawn, guides
    )


def _accuracy(records: Records, drawn_norms: list[str]) -> Lines:
    """Training accuracy of each norm at its own best rate, mean over seeds."""
    drawn = []
    for norm in drawn_norms:
        arm = best_arm(records, norm)
        if arm is not None:
            runs = records.select("train", norm=norm, init=arm[0], lr=arm[1])
            index, values = _smooth(runs, "accuracy")
            label = label_at(norm, arm[1])
            drawn.append(series(arm_of(norm), index, values, "line", label))
    return lines("labels.best_rate_panel", axis("step"), axis("accuracy", range=(0, 1)), drawn)


def _smooth(runs: list[Record], what: str) -> tuple[list[int], list[float | None]]:
    """The running mean over batches, mean over seeds, up to where the first of them diverged."""
    curve = mean_curve([smoothed(_finite(run.result[what])) for run in runs if run.result])
    index, values = thinned(curve, 60)
    return [SMOOTH + i for i in index], values


def _finite(values: list[float | None]) -> list[float]:
    """Up to where the run left the floats."""
    return [value for value in values if value is not None]


def _curves(records: Records, drawn_norms: list[str], read: list[int]) -> Figure:
    """Loss and accuracy step by step, every norm at the rate that the reader sets."""
    rates = sorted({lr for norm in drawn_norms for lr in records.values("train", "lr", norm=norm)})

    def drawn(lr: float, what: str) -> list[Series]:
        runs = {norm: records.select("train", norm=norm, lr=lr) for norm in drawn_norms}
        return [_line(norm, of, what) for norm, of in runs.items() if of]

    losses = [drawn(lr, "loss") for lr in rates]
    y = _loss_axis(records, [v for frame in losses for one in frame for v in one["y"]])
    share = axis("accuracy", range=(0, 1))
    frames: list[Panels] = [
        [
            lines("labels.loss_panel", axis("step"), y, loss),
            lines("labels.accuracy_panel", axis("step"), share, drawn(lr, "accuracy")),
        ]
        for lr, loss in zip(rates, losses, strict=True)
    ]
    controls = [rate_slider(rates)]
    return figure("converges.curves", records=read, controls=controls, frames=frames)


def _loss_axis(records: Records, values: list[float | None]) -> Axis:
    """Up to twice the loss of chance: a run on its way to infinity would flatten the rest."""
    known = [value for value in values if value]
    if not known:
        return axis("loss", log=True)
    chance = math.log(max(r.result["classes"] for r in records.select("train") if r.result))
    low, high = min(known), min(max(known), 2 * chance)
    return axis("loss", log=True, range=(low, high) if low < high else None)


def _line(norm: str, runs: list[Record], what: str) -> Series:
    index, values = _smooth(runs, what)
    return series(arm_of(norm), index, [v if v is None or v < _OFF_CHART else None for v in values])


def _landscape(records: Records, lr: float) -> Panels:
    """From the first weights that were tried at this rate."""
    init = records.values("landscape", "init", lr=lr)[0]
    panels: Panels = []
    for quantity in _QUANTITIES:
        drawn = []
        for norm in records.values("landscape", "norm", lr=lr, init=init):
            runs = list(records.by_seed("landscape", norm=norm, lr=lr, init=init).values())
            curve = mean_curve([run["over_time"][quantity] for run in runs])
            drawn.append(series(arm_of(norm), runs[0]["steps"][: len(curve)], curve, "line"))
        y = axis(quantity, log=True)
        panels.append(lines(f"labels.{quantity}_panel", axis("step"), y, drawn))
    return panels


def _ghostnet(records: Records) -> Lines:
    """The loss of each arm at its first seed; an arm that diverges ends where it does."""
    drawn: list[Series] = []
    first = min(records.values("train", "seed"))
    for record in records.select("train", seed=first):
        if not record.result:
            continue
        norm, init, lr = (record.settings[name] for name in ("norm", "init", "lr"))
        style = (
            "line" if norm == "batch" or init == "he+zero" else "dash" if init == "he" else "thin"
        )
        label = [f"labels.ghostnet_{norm}", {"init": init_title(init), "lr": setting(lr)}]
        loss = [value if value and value < _OFF_CHART else None for value in record.result["loss"]]
        drawn.append(series(arm_of(norm), list(range(len(loss))), loss, style, label))
    return lines("labels.ghostnet_panel", axis("step"), axis("loss", log=True), drawn)
