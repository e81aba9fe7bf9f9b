"""What a verdict is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from spiritlevel.study.stats import Interval

__all__ = ["STATUSES", "Judgement", "Part", "Status", "agree", "number", "times"]

Status = Literal["supported", "partly", "not supported", "inconclusive"]
STATUSES: tuple[Status, ...] = ("supported", "partly", "not supported", "inconclusive")


@dataclass(frozen=True)
class Part:
    """One measured quantity: its figure, what the rule says of it, and who defined it."""

    quantity: str
    """Key of its sentence in the catalogue."""
    value: float | None
    source: str
    interval: Interval | None = None
    n: int = 0
    holds: bool | None = None
    """What the rule makes of it; None where the rule cannot tell, or does not ask."""
    unit: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    """Fills the placeholders of the sentence."""

    @classmethod
    def of(cls, quantity: str, found: Interval | None, source: str, **more: Any) -> Part:
        """A part whose figure is the mean of an interval."""
        value = None if found is None else found.value
        return cls(
            quantity, value, source, interval=found, n=0 if found is None else found.n, **more
        )


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim of the article. `words` fills its sentences."""

    claim: str
    status: Status
    headline: Part
    parts: tuple[Part, ...]
    words: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        interval = self.headline.interval
        return {
            "claim": self.claim,
            "verdict": self.status,
            "quantity": self.headline.quantity,
            "value": self.headline.value,
            "interval": None if interval is None else [interval.low, interval.high],
            "n": self.headline.n,
        }


def agree(values: Sequence[bool]) -> bool | None:
    """True or False where all seeds say so, None where they disagree or there are none."""
    if not values or any(values) != all(values):
        return None
    return values[0]


def number(figure: Interval | float | None, unit: str = "") -> str:
    """Three significant digits, as a person writes them; an en dash for what is not there."""
    value = figure.value if isinstance(figure, Interval) else figure
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    size = abs(value)
    if value and (size < 1e-3 or size >= 1e5):
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif size >= 100:
        text = f"{value:.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−") + unit


def times(figure: Interval | float | None) -> str:
    return number(figure, "×")
