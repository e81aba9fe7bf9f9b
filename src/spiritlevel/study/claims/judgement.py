"""What a verdict is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from spiritlevel.study.stats import Interval

__all__ = ["STATUSES", "Judgement", "Part", "Status", "agree", "number", "setting", "times"]

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
    digits: int = 3
    chosen: bool = False
    """The value is one of the grid's, not a measured figure."""

    @property
    def text(self) -> str:
        return setting(self.value) if self.chosen else number(self.value, self.unit, self.digits)

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
    missing: int = 0
    """Runs that were planned for it and gave no result: then it is inconclusive."""

    def to_json(self) -> dict[str, Any]:
        interval = self.headline.interval
        return {
            "claim": self.claim,
            "verdict": self.status,
            "quantity": self.headline.quantity,
            "value": self.headline.value,
            "figure": self.headline.text,
            "interval": None if interval is None else [interval.low, interval.high],
            "n": self.headline.n,
        }


def agree(values: Sequence[bool]) -> bool | None:
    """True or False where all seeds say so, None where they disagree or there are none."""
    if not values or any(values) != all(values):
        return None
    return values[0]


def number(figure: Interval | float | None, unit: str = "", digits: int = 3) -> str:
    """A measured figure to `digits` significant ones; an en dash for what is not there."""
    value = figure.value if isinstance(figure, Interval) else figure
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    size = abs(value)
    if value and (size < 1e-3 or size >= 1e5):
        text = _power_of_ten(f"{value:.1e}")
    else:
        text = f"{value:.0f}" if size >= 100 or value == 0 else f"{value:#.{digits}g}".rstrip(".")
    return text.replace("-", "−") + unit


def setting(value: float | None) -> str:
    """A number that somebody chose, such as a learning rate: no more digits than it has."""
    return "–" if value is None else _power_of_ten(f"{value:g}").replace("-", "−")


def _power_of_ten(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def times(figure: Interval | float | None) -> str:
    return number(figure, "×")
