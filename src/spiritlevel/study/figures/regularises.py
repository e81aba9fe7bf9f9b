"""Pictures of claim 4."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.report.story import Arm, Figure, Guide, Lines, Series
from spiritlevel.study.claims.judgement import setting
from spiritlevel.study.claims.regularises import ARMS, differences
from spiritlevel.study.figures.build import axis, figure, guide, lines, mean_curve, series
from spiritlevel.study.records import Records
from spiritlevel.study.stats import mean_interval

__all__ = ["figures"]

_GROUPS = {"4": 4, "16": 16, "64": 64}


def figures(records: Records) -> Iterator[Figure]:
    targets = records.values("gap", "target")
    if records.select("noise") and targets:
        read = [*records.numbers("noise"), *records.numbers("gap")]
        panels = _noise(records), _difference(records)
        yield figure("regularises.noise", *panels, records=read, target=setting(targets[0]))
    if records.select("gap", **ARMS["off"]):
        seed = min(records.values("gap", "seed"))
        panel = _curves(records, seed, targets[0])
        yield figure("regularises.curves", panel, records=records.numbers("gap", seed=seed))


def _noise(records: Records) -> Lines:
    runs = list(records.by_seed("noise").values())
    sizes = runs[0]["sizes"]
    drawn: list[Series] = []
    styles = {"logits": "line", "last": "dash", "first": "thin"}
    for place, style in styles.items():
        curve = mean_curve([run["variance"][place] for run in runs])
        drawn.append(series("batch", sizes, curve, style, f"labels.noise_{place}"))
    start = mean_curve([run["variance"]["logits"] for run in runs])[0] or 1.0
    inverse = [start * sizes[0] / size for size in sizes]
    drawn.append(series("theory", sizes, inverse, "dash", "labels.inverse_n"))
    return lines("labels.noise_panel", axis("batch_size", log=True), axis("noise", log=True), drawn)


def _difference(records: Records) -> Lines:
    """Test loss against noise off, by group size: a dot a seed, the mean with its interval."""
    dots_x: list[float] = []
    dots_y: list[float | None] = []
    found = {}
    for arm, size in _GROUPS.items():
        values = differences(records, arm)
        if not values:
            continue
        dots_x += [size] * len(values)
        dots_y += values.values()
        found[size] = mean_interval(list(values.values()))
    known = {size: interval for size, interval in found.items() if interval is not None}
    # Of a single size the interval is a bar: a band has no width there.
    style = "line" if len(known) > 1 else "dots"
    means = series("ghost", list(known), [i.value for i in known.values()], style, "labels.mean")
    means["low"] = [i.low for i in known.values()]
    means["high"] = [i.high for i in known.values()]
    dots = series("ghost", dots_x, dots_y, "dots", "labels.a_seed")
    guides: list[Guide] = [guide("y", 0.0, "noise_off")]
    for arm in ("layer", "none"):
        rival = mean_interval(list(differences(records, arm).values()))
        if rival is not None:
            guides.append(guide("y", rival.value, f"rival_{arm}"))
    return lines(
        "labels.difference_panel",
        axis("group_size", log=True),
        axis("test_loss_difference"),
        [means, dots],
        guides,
    )


def _curves(records: Records, seed: int, target: float) -> Lines:
    """Test over training loss on the way down: equal training loss is vertical.

    Of one seed: a mean at equal steps would compare runs that are not equally far.
    """
    drawn: list[Series] = []
    arms: dict[str, Arm] = {"off": "off", "16": "ghost", "none": "none", "layer": "layer"}
    for name, arm in arms.items():
        run = records.by_seed("gap", **ARMS[name]).get(seed)
        if run is None:
            continue
        losses = zip(run["train_loss"], run["test_loss"], strict=True)
        pairs = [(a, b) for a, b in losses if a and b and a < 2]
        label = f"labels.gap_{name}"
        drawn.append(series(arm, [a for a, _ in pairs], [b for _, b in pairs], "line", label))
    return lines(
        "labels.curves_panel",
        axis("train_loss", log=True),
        axis("test_loss", log=True),
        drawn,
        [guide("x", target, "target")],
    )
