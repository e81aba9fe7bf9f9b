"""Pictures of claim 2."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.report.story import Figure, Lines, Series
from spiritlevel.study.claims.common import best_rate, mean_final_loss
from spiritlevel.study.claims.converges import LANDSCAPE_LRS, RULE
from spiritlevel.study.claims.judgement import setting
from spiritlevel.study.figures.build import (
    arm_of,
    axis,
    figure,
    guide,
    lines,
    mean_curve,
    series,
    thinned,
)
from spiritlevel.study.records import Records
from spiritlevel.study.tasks.common import SMOOTH, smoothed

__all__ = ["figures"]

_OFF_CHART = 1e3
"""Losses beyond it are on their way to infinity, and would flatten the rest."""


def figures(records: Records) -> Iterator[Figure]:
    norms = records.values("sweep", "norm")
    if norms:
        words = {"trained": setting(RULE["trained_below"])}
        yield figure("converges.rates", _rates(records, norms), _accuracy(records, norms), **words)
    if records.select("landscape", lr=LANDSCAPE_LRS[0]):
        panels = (
            _landscape(records, quantity)
            for quantity in ("loss_range", "gradient_change", "beta_norm2")
        )
        yield figure("converges.landscape", *panels, lr=setting(LANDSCAPE_LRS[0]))
    if records.select("ghostnet"):
        yield figure("converges.ghostnet", _ghostnet(records))


def _rates(records: Records, norms: list[str]) -> Lines:
    """Final loss over learning rate: a line through means, a dot a seed; none where it diverged."""
    drawn: list[Series] = []
    for norm in norms:
        rates = records.values("sweep", "lr", norm=norm)
        means = [mean_final_loss(records, "sweep", norm=norm, lr=lr) for lr in rates]
        drawn.append(
            series(arm_of(norm), rates, [m if m < float("inf") else None for m in means], "line")
        )
        runs = records.select("sweep", norm=norm)
        drawn.append(
            series(
                arm_of(norm),
                [run.settings["lr"] for run in runs],
                [run.result["final_loss"] if run.result else None for run in runs],
                "dots",
            )
        )
    bound = guide("y", RULE["trained_below"], "trained")
    return lines(
        "labels.rates_panel", axis("lr", log=True), axis("final_loss", log=True), drawn, [bound]
    )


def _accuracy(records: Records, norms: list[str]) -> Lines:
    """Training accuracy of each norm at its own best rate, mean over seeds."""
    drawn = []
    for norm in norms:
        lr = best_rate(records, "sweep", norm)
        runs = records.by_seed("sweep", norm=norm, lr=lr).values()
        index, values = thinned(mean_curve([smoothed(run["accuracy"]) for run in runs]))
        label = ["labels.at_rate", {"norm": norm, "lr": setting(lr)}]
        drawn.append(series(arm_of(norm), [SMOOTH + i for i in index], values, "line", label))
    return lines("labels.best_rate_panel", axis("step"), axis("accuracy", range=(0, 1)), drawn)


def _landscape(records: Records, quantity: str) -> Lines:
    drawn = []
    for norm in records.values("landscape", "norm", lr=LANDSCAPE_LRS[0]):
        runs = list(
            records.by_seed("landscape", norm=norm, lr=LANDSCAPE_LRS[0], init="he").values()
        )
        curve = mean_curve([run["over_time"][quantity] for run in runs])
        steps = runs[0]["steps"][: len(curve)]
        drawn.append(series(arm_of(norm), steps, curve, "line"))
    return lines(f"labels.{quantity}_panel", axis("step"), axis(quantity, log=True), drawn)


def _ghostnet(records: Records) -> Lines:
    """The loss of each GhostNet arm at its first seed; an arm that diverges ends where it does."""
    drawn: list[Series] = []
    first = min(records.values("ghostnet", "seed"))
    for record in records.select("ghostnet", seed=first):
        if not record.result:
            continue
        norm, init, lr = (record.settings[name] for name in ("norm", "init", "lr"))
        style = (
            "line" if norm == "batch" or init == "he+zero" else "dash" if init == "he" else "thin"
        )
        label = [f"labels.ghostnet_{norm}", {"init": init, "lr": setting(lr)}]
        loss = [value if value and value < _OFF_CHART else None for value in record.result["loss"]]
        drawn.append(series(arm_of(norm), list(range(len(loss))), loss, style, label))
    return lines("labels.ghostnet_panel", axis("step"), axis("loss", log=True), drawn)
