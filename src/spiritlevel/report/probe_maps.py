"""A probe's readings as figures of the page: a map of depth by time for each metric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles

from spiritlevel.catalogue import sentence
from spiritlevel.report.metrics import METRICS, Look, look_of, words_of
from spiritlevel.report.numbers import number
from spiritlevel.report.readings import Readings, Rows
from spiritlevel.report.story import Figure, Heatmap
from spiritlevel.report.words import Text

__all__ = ["Map", "layer_name", "maps"]


@dataclass(frozen=True)
class Map:
    """A metric's figure and its one panel.

    `group` says where the page offers it, `notes` what its colours hide.
    """

    metric: str
    group: str
    figure: Figure
    panel: Heatmap
    clipped: tuple[bool, bool]
    notes: list[Text]


def maps(it: Readings) -> list[Map]:
    """In the order of METRICS, unknown ones last; none for a metric of which nothing was read."""
    known = [name for name in METRICS if name in it.metrics]
    others = [name for name in it.metrics if name not in METRICS]
    found = [_map(it, name, f"other-{i}") for i, name in enumerate([*known, *others])]
    return [one for one in found if one is not None]


def layer_name(path: str) -> str:
    """As the page names a layer: its path, which the model itself has none of."""
    return path or sentence("probe_page.model_itself")


def _map(it: Readings, metric: str, otherwise: str) -> Map | None:
    kept = [i for i, row in enumerate(it.metrics[metric]) if any(v is not None for v in row)]
    if not kept:
        return None
    rows = [layer_name(it.layers[i].path) for i in kept]
    z = [it.metrics[metric][i] for i in kept]
    look, words = look_of(metric), words_of(metric)
    known = [v for row in z for v in row if v is not None]
    shown = [v for v in known if v > 0] if look.log else known
    ends = _ends(shown, look)
    panel: Heatmap = {
        "kind": "heatmap",
        "title": words["title"],
        "x": {"label": "probe_page.step"},
        "y": {"label": "probe_page.layers"},
        "columns": it.steps,
        "rows": rows,
        "z": z,
        "colour": {
            "label": words["colour"],
            "log": look.log,
            "range": list(ends),
            "middle": look.middle,
        },
        "tall": True,
    }
    figure: Figure = {
        # An unknown metric's name may hold anything.
        "id": metric if metric in METRICS else otherwise,
        "title": words["title"],
        "summary": _summary(rows, it.steps, z, look),
        "caption": words["read"],
        "panels": [panel],
    }
    low, high = min(shown, default=ends[0]), max(shown, default=ends[1])
    clipped = (low < ends[0], high > ends[1])
    unread = len(known) < len(z) * len(it.steps)
    notes = list(_notes(len(known) - len(shown), any(clipped), unread))
    return Map(metric, look.group, figure, panel, clipped, notes)


def _summary(rows: Sequence[str], steps: Sequence[float], z: Rows, look: Look) -> Text:
    """Its range, and where its most telling cell is."""
    cells = [(v, i, j) for i, row in enumerate(z) for j, v in enumerate(row) if v is not None]
    low, high = min(cells)[0], max(cells)[0]
    values = {"low": number(low), "high": number(high), "n": len(rows)}
    if low == high:
        return ["probe_page.shows_one", values]
    middle = look.middle or 0.0

    def telling(cell: tuple[float, int, int]) -> float:
        return cell[0] if look.middle is None else abs(cell[0] - middle)

    far, i, j = max(cells, key=telling)
    values |= {"layer": rows[i], "step": number(steps[j])}
    if look.middle is None:
        return ["probe_page.shows", values]
    return ["probe_page.shows_from", values | {"middle": number(middle), "value": number(far)}]


def _notes(zeros: int, clipped: bool, unread: bool) -> Iterator[Text]:
    if zeros:
        yield ["probe_page.zeros", {"n": zeros}]
    if unread:
        yield "probe_page.unread"
    if clipped:
        yield "probe_page.clipped"


def _ends(known: Sequence[float], look: Look) -> tuple[float, float]:
    """Where the colours end: at the least and greatest value, unless a few lie far outside.

    An end that lies farther beyond the 1st or 99th percentile than those are apart would leave all
    others in one colour; there the colours end at the percentile.
    """
    if look.kind == "from 0":
        # A hundredth keeps a single small share from having the brightest colour.
        return 0.0, max([0.01, *known])
    values = sorted(known) or [1.0]
    first, last = _trimmed(values, log=look.log)
    if look.middle is not None:
        reach = max(abs(last - look.middle), abs(first - look.middle)) or 1.0
        return look.middle - reach, look.middle + reach
    if first < last:
        return first, last
    # One value only: colours need two ends.
    return (first / 2, first * 2) if look.log else (first - 1, first + 1)


def _trimmed(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Ends of the sorted `values`, at their 1st or 99th percentile where they reach far beyond."""
    first, last = values[0], values[-1]
    if len(values) < 100:
        return first, last
    percentiles = quantiles(values, n=100, method="inclusive")
    low, high = percentiles[0], percentiles[-1]

    def place(value: float) -> float:
        return math.log(value) if log else value

    apart = place(high) - place(low)
    if not apart:
        return first, last
    far_low, far_high = place(low) - place(first) > apart, place(last) - place(high) > apart
    return low if far_low else first, high if far_high else last
