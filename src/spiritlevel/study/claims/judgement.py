"""What a verdict is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal

from spiritlevel.catalogue import say
from spiritlevel.study.stats import Interval

__all__ = [
    "PERCENT",
    "STATUSES",
    "UNASKED",
    "Judgement",
    "Part",
    "Status",
    "agree",
    "combine",
    "number",
    "setting",
    "times",
]

PERCENT = " %"
"""As a unit; each language writes it in its own way."""

_NOTHING, _INFINITE = "–", "∞"

Status = Literal["supported", "partly", "not supported", "inconclusive"]
STATUSES: tuple[Status, ...] = ("supported", "partly", "not supported", "inconclusive")


class _Unasked(Enum):
    UNASKED = "the rule does not ask for it"


UNASKED = _Unasked.UNASKED


@dataclass(frozen=True)
class Part:
    """One measured quantity: its figure, what the rule says of it, and who defined it."""

    quantity: str
    """Key of its sentence in the catalogue."""
    value: float | None
    source: str
    interval: Interval | None = None
    n: int = 0
    holds: bool | _Unasked | None = UNASKED
    """What the rule makes of it; None where it cannot tell."""
    unit: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    """Fills the placeholders of the sentence."""
    digits: int = 3
    chosen: bool = False
    """The value is one of the grid's, not a measured figure."""
    records: tuple[int, ...] = ()
    """Where the records it was made of stand in the run, counted from 0."""

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
    by_network: Mapping[str, Judgement] = field(default_factory=dict)
    """The verdict on each network, where the claim was judged on more than one."""

    def to_json(self) -> dict[str, Any]:
        interval = self.headline.interval
        networks = {name: verdict.to_json() for name, verdict in self.by_network.items()}
        return {
            "claim": self.claim,
            "verdict": self.status,
            "quantity": self.headline.quantity,
            "value": self.headline.value,
            "figure": self.headline.text,
            "interval": None if interval is None else [interval.low, interval.high],
            "n": self.headline.n,
        } | ({"networks": networks} if networks else {})


def combine(verdicts: Mapping[str, Judgement]) -> Judgement:
    """One verdict over networks, with the figure of the first that decides.

    That of those that decide, if two or more do: theirs where they agree, partly where they do not.
    """
    first = next(iter(verdicts.values()))
    if len(verdicts) == 1:
        return first
    decided = [verdict for verdict in verdicts.values() if verdict.status != "inconclusive"]
    status: Status = "inconclusive"
    if len(decided) > 1:
        statuses = {verdict.status for verdict in decided}
        status = decided[0].status if len(statuses) == 1 else "partly"
    return replace((decided or [first])[0], status=status, by_network=dict(verdicts))


def agree(values: Sequence[bool]) -> bool | None:
    """True or False where all seeds say so, None where they disagree or there are none."""
    if not values or any(values) != all(values):
        return None
    return values[0]


def number(figure: Interval | float | None, unit: str = "", digits: int = 3) -> str:
    """A measured figure to `digits` significant ones; an en dash for what is not there."""
    value = figure.value if isinstance(figure, Interval) else figure
    if value is None or math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return _INFINITE
    size = abs(value)
    if value and (size < 1e-3 or size >= 1e5):
        text = _power_of_ten(f"{value:.1e}")
    else:
        text = f"{value:.0f}" if size >= 100 or value == 0 else f"{value:#.{digits}g}".rstrip(".")
    text = text.replace("-", "−")
    return say("joints.percent", n=text) if unit == PERCENT else text + unit


def setting(value: float | None) -> str:
    """A number that somebody chose, such as a learning rate: no more digits than it has."""
    return _NOTHING if value is None else _power_of_ten(f"{value:g}").replace("-", "−")


def _power_of_ten(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def times(figure: Interval | float | None) -> str:
    """In a sentence: 4.77×."""
    text = number(figure)
    return text if text in (_NOTHING, _INFINITE) else say("joints.times", n=text)
