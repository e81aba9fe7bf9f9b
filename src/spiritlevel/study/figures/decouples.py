"""Pictures of claim 5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spiritlevel.report.story import Arm, Figure, Lines, Series
from spiritlevel.report.words import Text
from spiritlevel.study.claims.decouples import shift_pairs
from spiritlevel.study.claims.judgement import setting
from spiritlevel.study.figures.build import axis, figure, lines, mean_curve, series
from spiritlevel.study.networks import init_title
from spiritlevel.study.records import Records

__all__ = ["figures"]

_PAIR_ARMS: tuple[Arm, ...] = ("other", "off", "ghost")
_STYLES = {"0.0": "line", "1e-05": "dash", "0.001": "thin"}


def figures(records: Records) -> Iterator[Figure]:
    networks = list(records.by_seed("scaling").values())
    layers = list(records.by_seed("invariance").values())
    if networks and layers:
        read = [*records.numbers("scaling"), *records.numbers("invariance")]
        panels = _errors(networks, layers), _trajectories(layers[0])
        yield figure("decouples.scale", *panels, records=read)
    pairs = shift_pairs(records)
    if pairs:
        read = records.numbers("landscape")
        yield figure("decouples.layers", _layers(pairs), records=read)


def _errors(networks: list[dict[str, Any]], layers: list[dict[str, Any]]) -> Lines:
    """A single layer at each eps, and the network's own layers, with BN and without."""
    scales = layers[0]["scales"]
    drawn: list[Series] = [
        series(
            "batch",
            scales,
            mean_curve([run["errors"][eps] for run in layers]),
            style,
            ["labels.with_eps", {"eps": setting(float(eps))}],
        )
        for eps, style in _STYLES.items()
    ]
    in_network = networks[0]["scales"]
    exact = mean_curve([run["errors"]["0.0"] for run in networks])
    drawn.append(series("batch", in_network, exact, "dots", "labels.in_network"))
    without = mean_curve([run["errors_without"] for run in networks])
    drawn.append(series("none", in_network, without, "line", "labels.in_network_without"))
    return lines(
        "labels.errors_panel",
        axis("weight_scale", log=True),
        axis("relative_error", log=True),
        drawn,
    )


def _trajectories(run: dict[str, Any]) -> Lines:
    found = run["trajectories"]
    steps = list(range(len(found["loss"])))
    drawn = [
        series("batch", steps, found["loss"], "line", "labels.from_w"),
        series("theory", steps, found["loss_same_effective_rate"], "dash", "labels.from_10w_100lr"),
        series("other", steps, found["loss_same_rate"], "thin", "labels.from_10w"),
    ]
    return lines("labels.trajectories_panel", axis("step"), axis("loss"), drawn)


def _layers(pairs: list[dict[str, Any]]) -> Lines:
    """A dot a pair of runs: the cross-layer figure without and with BN; diagonal: equality."""
    x = [pair["none"]["relative"] for pair in pairs]
    y = [pair["batch"]["relative"] for pair in pairs]
    drawn: list[Series] = []
    for init in sorted({pair["init"] for pair in pairs}):
        for lr in sorted({pair["lr"] for pair in pairs if pair["init"] == init}):
            chosen = [i for i, p in enumerate(pairs) if p["init"] == init and p["lr"] == lr]
            label: Text = ["labels.pair", {"init": init_title(init), "lr": setting(lr)}]
            arm = _PAIR_ARMS[len(drawn) % len(_PAIR_ARMS)]
            drawn.append(series(arm, [x[i] for i in chosen], [y[i] for i in chosen], "dots", label))
    # A point at every twentieth: the axis takes a few points for its own ticks.
    ends = [1.1 * max(*x, *y) * step / 20 for step in range(21)]
    drawn.append(series("theory", ends, ends, "dash", "labels.equal"))
    return lines("labels.layers_panel", axis("shift_none"), axis("shift_batch"), drawn)
