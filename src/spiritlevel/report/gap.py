"""How much of a model's gap is BN: what was measured, in words and as bars on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spiritlevel.catalogue import keys, sentence
from spiritlevel.report.numbers import in_percent, number, percent, told
from spiritlevel.report.words import Text, say

__all__ = ["Bar", "LayerBar", "answer", "bars", "layer_bars", "metric_name"]

MODES = ("eval", "batch", "recalibrated")


@dataclass(frozen=True)
class Score:
    """A value and its interval, both ends of which are the value itself where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """A measured value with its interval; places are in percent of the scale's width."""

    name: Text
    value: str
    interval: str | None
    place: float
    low: float
    high: float


@dataclass(frozen=True)
class LayerBar:
    """How much of the gap closes with one layer; `width` in percent of the whole gap."""

    module: str
    value: str
    closed: str
    width: float


def answer(gap: Mapping[str, Any]) -> Text:
    """The first sentence: how much is lost to the running statistics, if that can be told."""
    metric, running, batch = gap["metric"], _score(gap["eval"]), _score(gap.get("batch"))
    assert running is not None
    values: dict[str, Any] = {"eval": _shown(running.value, metric), "samples": gap["samples"]}
    if batch is None:
        return ["diagnosis_page.gap_no_norm", values]
    values["batch"] = _shown(batch.value, metric)
    lost = _better(metric) * (batch.value - running.value)
    if not math.isfinite(lost):
        return ["diagnosis_page.gap_not_finite", values]
    if gap.get("untrained"):
        return ["diagnosis_page.gap_untrained", values]
    gain = _score(gap.get("gain"))
    if not gap.get("blames", _apart(running, batch, gain) and lost > 0):
        if lost < 0 and _apart(running, batch, gain):
            return ["diagnosis_page.gap_none", values]
        if gain is None:
            return ["diagnosis_page.gap_unclear", values]
        return ["diagnosis_page.gap_small", values | _gain_in_words(gain, metric)]
    values["lost"] = _difference(lost, metric)
    again = _score(gap.get("recalibrated"))
    if again is None:
        return ["diagnosis_page.gap_lost_alone", values]
    share = _better(metric) * (again.value - running.value) / lost
    back = {"share": percent(share), "value": _shown(again.value, metric)}
    recovers = "diagnosis_page.recovers" if share > 0 else "diagnosis_page.recovers_nothing"
    return ["diagnosis_page.gap_lost", values | {"recovers": say([recovers, back])}]


def _score(one: Mapping[str, Any] | None) -> Score | None:
    """What is not finite may come as a text, for JSON has no word for it."""
    if one is None or one.get("value") is None:
        return None
    value = float(one["value"])
    low, high = (one.get(end) for end in ("low", "high"))
    return Score(
        value, value if low is None else float(low), value if high is None else float(high)
    )


def _better(metric: str) -> int:
    """1 where more of it is better, -1 where less is."""
    return 1 if metric == "accuracy" else -1


def _apart(running: Score, batch: Score, gain: Score | None) -> bool:
    """Whether chance alone does not explain it: by their difference sample by sample, if known."""
    if gain is not None:
        return gain.low > 0 or gain.high < 0
    return running.low > batch.high or batch.low > running.high


def _shown(value: float, metric: str) -> str:
    """Accuracy in percent to a tenth, an error in figures."""
    return in_percent(f"{100 * value:.1f}") if metric == "accuracy" else number(value, 3)


def _difference(value: float, metric: str) -> Any:
    """Such as 1.2 points of accuracy, or 0.31 in loss."""
    if metric == "accuracy":
        return say(["diagnosis_page.points", {"n": _points(value)}])
    return say(["diagnosis_page.in_metric", {"n": number(value, 3), "metric": metric_name(metric)}])


def metric_name(metric: str) -> str:
    """In words; as it stands where the catalogue has none."""
    key = f"diagnosis_page.metrics.{metric.replace(' ', '_')}"
    return sentence(key) if key in keys() else metric


def _points(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "−")


def _gain_in_words(gain: Score, metric: str) -> dict[str, Any]:
    ends = (gain.low, gain.high)
    low, high = (_points(e) if metric == "accuracy" else number(e, 3) for e in ends)
    return {"gain": _difference(gain.value, metric), "low": low, "high": high}


def bars(gap: Mapping[str, Any]) -> list[Bar]:
    """Of the three ways to normalize, on a scale from the least interval's end to the greatest."""
    scores = {mode: _score(gap.get(mode)) for mode in MODES}
    there = {mode: one for mode, one in scores.items() if one is not None}
    ends = [end for one in there.values() for end in (one.low, one.high) if math.isfinite(end)]
    least, most = min(ends, default=0.0), max(ends, default=0.0)

    def place(value: float) -> float:
        known = most > least and math.isfinite(value)
        return round(100 * (value - least) / (most - least), 2) if known else 50.0

    def interval(one: Score) -> str | None:
        if one.low == one.high or not math.isfinite(one.value):
            return None
        return " – ".join(_shown(end, gap["metric"]) for end in (one.low, one.high))

    return [
        Bar(
            f"diagnosis_page.gap_{mode}",
            _shown(one.value, gap["metric"]),
            interval(one),
            *map(place, (one.value, one.low, one.high)),
        )
        for mode, one in there.items()
    ]


def layer_bars(gap: Mapping[str, Any]) -> list[LayerBar]:
    """The layers, those that close most of the gap first."""
    layers: Sequence[Mapping[str, Any]] = gap.get("layers") or []
    ranked = sorted(((_finite(one.get("closed")), one) for one in layers), key=_most_first)
    # A whole bar is the whole gap, or what closes more than that.
    widest = max([1.0, *(closed for closed, _ in ranked if closed is not None)])
    return [
        LayerBar(
            str(one["module"]),
            _shown(float(one["value"]), gap["metric"]),
            told(None) if closed is None else percent(closed),
            round(100 * max(0.0, closed or 0.0) / widest, 1),
        )
        for closed, one in ranked
    ]


def _most_first(pair: tuple[float | None, Any]) -> float:
    return math.inf if pair[0] is None else -pair[0]


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None
