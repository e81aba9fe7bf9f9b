"""A probe in a notebook: how far it is, what it costs, and each norm layer's last reading."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from spiritlevel.catalogue import say
from spiritlevel.report.notebook import DIM, Html, block, cell, code, lines, more, table
from spiritlevel.report.numbers import number, percent, seconds, told

__all__ = ["probe_html"]

_ROWS = 10
_COLUMNS = ("z_median", "z_max", "var_ratio", "values", "grad_norm", "update_ratio", "dead_share")


def probe_html(latest: Mapping[str, Any]) -> Html:
    """`latest` as `probe.record.latest_of` has it."""
    layers = sorted(latest["layers"], key=_badness, reverse=True)
    read = [layer for layer in layers if layer["step"] is not None]
    return block(
        lines([_head(latest), *_cost(latest)]),
        _table(read) if read else lines([say("notebook.probe.nothing")], DIM),
        lines([more(len(read) - _ROWS)], DIM) if len(read) > _ROWS else "",
        _unseen(latest["unseen"]),
    )


def _head(latest: Mapping[str, Any]) -> str:
    names = ("model", "steps", "samples", "every")
    values = {name: latest[name] for name in names}
    values |= {name: f"{latest[name]:,}" for name in names[1:]}
    return say("notebook.probe.head", norms=f"{len(latest['layers']):,}", **values)


def _cost(latest: Mapping[str, Any]) -> Sequence[str]:
    if not latest["steps"]:
        return ()
    cost = latest["overhead"]
    times = {name: seconds(cost[name] / 1000) for name in ("sampled_ms", "step_ms")}
    key = "open" if latest["open"] else "closed"
    values = {"share": percent(cost["share"]), "seconds": seconds(cost["seconds"]), **times}
    return (say(f"notebook.probe.cost_{key}", **values),)


def _table(layers: Sequence[Mapping[str, Any]]) -> Html:
    heads = [say("diagnosis_page.layer"), *(say(f"notebook.probe.{name}") for name in _COLUMNS)]
    rows = [_row(layer) for layer in layers[:_ROWS]]
    return table(heads, rows, say("notebook.probe.order"))


def _row(layer: Mapping[str, Any]) -> Sequence[Html]:
    step = say("notebook.probe.at_step", type=layer["type"], step=f"{layer['step']:,}")
    first = f'{code(layer["path"] or say("probe_page.model_itself"))}<div style="{DIM}">'
    if layer["non_finite"]:
        step += "; " + say("notebook.probe.non_finite", n=number(layer["non_finite"]))
    first += f"{escape(step)}</div>"
    return [cell(first), *(cell(escape(_shown(name, layer[name]))) for name in _COLUMNS)]


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return told(None)
    if name.endswith("_share"):
        return percent(value)
    return f"{number(value, 3)}×" if name == "var_ratio" else number(value, 3)


def _badness(layer: Mapping[str, Any]) -> tuple[float, float]:
    """Channels that are not finite; then how far the running statistics are from the batch's."""
    ratio = layer["var_ratio"]
    apart = math.inf if ratio == 0 else abs(math.log(ratio)) if ratio is not None else 0.0
    return layer["non_finite"] or 0.0, (layer["z_median"] or 0.0) + apart


def _unseen(texts: Sequence[str]) -> Html:
    if not texts:
        return ""
    return f"<div><b>{escape(say('notebook.probe.unseen'))}</b></div>{lines(texts, DIM)}"
