"""A diagnosis in a notebook: what batch norm costs first, then finding by finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from spiritlevel.catalogue import say
from spiritlevel.report import words
from spiritlevel.report.gap import answer, bars, layer_bars, metric_name
from spiritlevel.report.notebook import (
    DIM,
    Html,
    band,
    bar,
    block,
    cell,
    code,
    folded,
    lines,
    more,
    table,
)
from spiritlevel.report.numbers import told

__all__ = ["diagnosis_html"]

_LAYERS = 5
_FINDINGS = 20
"""That are seen at once: a deep network may have one at each layer."""
# Beside the word, so that nothing hangs on telling colours apart. Seen on white and on black.
_COLOURS = {"error": "#d1242f", "warning": "#b8860b", "info": "#3b82c4"}


def diagnosis_html(diagnosis: Mapping[str, Any], summary: str) -> Html:
    """`diagnosis` as `Diagnosis.to_dict()` has it, and its summary in a line."""
    findings = [_row(one) for one in diagnosis["findings"]]
    first, rest = findings[:_FINDINGS], findings[_FINDINGS:]
    title = f"<div><b>{escape(str(diagnosis['model']))}</b>: {escape(summary)}</div>"
    return block(
        _gap(diagnosis["gap"]) if diagnosis["gap"] else "",
        title,
        table([], first) if first else "",
        folded(more(len(rest)), table([], rest)) if rest else "",
        lines(map(str, diagnosis["notes"]), DIM),
    )


def _gap(gap: Mapping[str, Any]) -> Html:
    """The three ways to normalize, and the layers that the difference lies in."""
    ways = [
        (
            cell(words.say(one.name)),
            cell(f"<b>{escape(one.value)}</b>"),
            cell(escape(one.interval or told(None))),
            cell(band(one.low, one.high, one.place)),
        )
        for one in bars(gap)
    ]
    names = [say(f"diagnosis_page.{name}") for name in ("mode", "interval")]
    heads = [names[0], metric_name(gap["metric"]), names[1], ""]
    return f"<div>{words.say(answer(gap))}</div>{table(heads, ways)}{_layers(gap)}"


def _layers(gap: Mapping[str, Any]) -> Html:
    found = layer_bars(gap)
    if not found:
        return ""
    rows = [
        (cell(code(one.module)), cell(escape(one.value)), cell(one.closed), cell(bar(one.width)))
        for one in found[:_LAYERS]
    ]
    heads = [say("notebook.alone"), metric_name(gap["metric"]), say("diagnosis_page.closed"), ""]
    rest = len(found) - _LAYERS
    return table(heads, rows) + (lines([more(rest)], DIM) if rest > 0 else "")


def _row(finding: Mapping[str, Any]) -> Sequence[Html]:
    """Where and how grave; and what was seen, what to do, and the numbers."""
    severity = str(finding["severity"])
    where = str(finding["module"])
    name = f"{finding['rule']} {finding['name']}"
    head = (
        f"<b>{escape(say(f'diagnosis_page.severity_{severity}'))}</b>"
        f"<div>{escape(name)}</div>"
        f"<div>{code(where) if where else escape(say('diagnosis_page.model_itself'))}</div>"
    )
    parts = [f"<div>{escape(str(finding['message']))}</div>"]
    if fix := str(finding["fix"] or ""):
        title = escape(say("joints.label", label=say("diagnosis_page.fix")))
        parts.append(f'<div style="white-space:pre-wrap"><b>{title}</b>{escape(fix)}</div>')
    if evidence := finding["evidence"]:
        numbers = [(cell(escape(str(k))), cell(escape(told(v)))) for k, v in evidence.items()]
        parts.append(folded(say("notebook.evidence"), table([], numbers), DIM))
    border = f"border-left:4px solid {_COLOURS.get(severity, 'currentColor')};padding-left:8px"
    return (cell(head, border), cell("".join(parts), "min-width:16em;max-width:44em"))
