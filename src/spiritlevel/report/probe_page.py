"""The page of a probe: its readings as maps of depth by time, and what it counted.

>>> from spiritlevel.report import probe_page
>>> path = probe_page.write(record, Path("probe.html"))  # doctest: +SKIP

`readings.Readings` says what the record holds; any piece of it may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spiritlevel.errors import require
from spiritlevel.files import write_whole
from spiritlevel.report import figures, heatmap, shell
from spiritlevel.report.axes import axis, layout, scale
from spiritlevel.report.lines import HEIGHT
from spiritlevel.report.metrics import groups
from spiritlevel.report.numbers import number, percent, seconds, told
from spiritlevel.report.page import LIMIT
from spiritlevel.report.probe_maps import Map, layer_name, maps
from spiritlevel.report.readings import COUNTERS, Readings, readings
from spiritlevel.report.story import Figure
from spiritlevel.report.summary import chart_name
from spiritlevel.report.thin import fitted
from spiritlevel.report.words import Text

__all__ = ["render", "write"]

# In this order they are one script; the last one starts it all.
SCRIPTS = ("charts", "tables", "figures", "probe")
COUNTS = ("steps", "forwards", "backwards", "skipped", "perturbed")


def render(record: Mapping[str, Any]) -> str:
    """The whole page as HTML that asks nothing of any network, of at most page.LIMIT bytes.

    Of maps too large for that some steps are left out, and the page says so. Raises UsageError
    if the record's pieces do not fit each other, MissingExtra without plotly.
    """
    it = readings(record)
    found = maps(it)
    # Without the data, and with the note of each map that has lost steps.
    rest = _fill(it, [_drawn(one, "", 2) for one in found])
    room = LIMIT - len(rest.encode("utf-8", "replace"))
    written, steps = fitted([one.figure for one in found], _packed, room)
    names = [one.figure["id"] for one in found]
    drawn = [_drawn(one, written[n], steps[n]) for n, one in zip(names, found, strict=True)]
    return _fill(it, drawn)


def write(record: Mapping[str, Any], path: Path) -> Path:
    """Render to `path`, which holds the old page or the whole new one at every moment."""
    write_whole(path, render(record))
    return path


def _packed(figure: Figure) -> str:
    """The figure's data, deflated: a third of its size. web/probe.js has the way back."""
    return shell.deflated(
        json.dumps(figures.drawing(figure), allow_nan=False, separators=(",", ":"))
    )


def _drawn(one: Map, data: str, step: int) -> dict[str, Any]:
    """What the template needs of a map."""
    panel = one.panel
    log = panel["colour"]["log"]
    key = heatmap.colour_key([panel])
    html = require("markupsafe", extra="study").Markup
    values = [v for row in panel["z"] for v in row if v is not None and (v > 0 or not log)]
    low, _, high = key["numbers"]
    if one.clipped[0]:
        low = html("≤ ") + low
    if one.clipped[1]:
        high = html("≥ ") + high
    return {
        "figure": one.figure,
        "group": one.group,
        "panel": panel,
        "height": figures.height([panel]),
        "colour_key": key | {"numbers": [low, key["numbers"][1], high]},
        "axis": scale({"label": "", "log": log}, values, at_points=False),
        "label": chart_name(one.figure, panel),
        "notes": one.notes,
        "step": step,
        "data": data,
    }


def _fill(it: Readings, drawn: list[dict[str, Any]]) -> str:
    script, plotly = shell.script(SCRIPTS), shell.plotly()
    offered = {group: [one for one in drawn if one["group"] == group] for group in groups()}
    return (
        shell.environment({"told": told})
        .get_template("probe.html.j2")
        .render(
            it=it,
            maps=[one for group in offered.values() for one in group],
            offered={group: found for group, found in offered.items() if found},
            sampled=_sampled(it),
            counts=_counts(it),
            counters=[(layer_name(str(one.get("path", ""))), one) for one in it.counters],
            columns=COUNTERS,
            overhead=_overhead(it),
            version=version("spiritlevel"),
            css=shell.styles("page", "doctor"),
            script=script,
            plotly=plotly["deflated"],
            policy=shell.policy([plotly["hash"], shell.hash_of(script)]),
            words=shell.texts("reader") | shell.texts("probe_page.script"),
            trace={
                "layout": layout(HEIGHT, xaxis=axis(grid=False), yaxis=axis(grid=True)),
                "axes": {one["figure"]["id"]: one["axis"] for one in drawn},
            },
        )
    )


def _sampled(it: Readings) -> Text:
    """How many layers were read at which steps."""
    if not it.steps:
        return "probe_page.nothing"
    first, last = number(it.steps[0]), number(it.steps[-1])
    values = {"layers": len(it.layers), "steps": len(it.steps), "first": first, "last": last}
    if len(it.steps) == 1:
        return ["probe_page.sampled_once", values]
    if it.every is None or it.every == 1:
        return ["probe_page.sampled_each", values]
    return ["probe_page.sampled", values | {"every": it.every}]


def _counts(it: Readings) -> list[tuple[Text, str]]:
    """Each count with its name in words, or as it stands where the catalogue has none."""
    return [
        (
            f"probe_page.counts.{name}" if name in COUNTS else ["page.plain", {"text": name}],
            told(value),
        )
        for name, value in it.counts.items()
    ]


def _overhead(it: Readings) -> list[Text]:
    cost = it.overhead
    found: list[Text] = []
    if {"share", "seconds"} <= cost.keys():
        values = {"share": percent(cost["share"]), "seconds": seconds(cost["seconds"])}
        found.append(["probe_page.overhead", values])
    if {"sampled_ms", "step_ms"} <= cost.keys():
        names = {"sampled": "sampled_ms", "step": "step_ms"}
        values = {name: seconds(cost[key] / 1000) for name, key in names.items()}
        found.append(["probe_page.overhead_steps", values])
    return found or ["probe_page.no_overhead"]
