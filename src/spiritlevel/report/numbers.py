"""Numbers as people write them, in plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spiritlevel.catalogue import sentence

__all__ = ["in_figures", "in_percent", "number", "percent", "seconds", "told"]


def number(value: float, figures: int = 4) -> str:
    """So many significant figures at most; a whole number below a billion as it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}".replace("-", "−")
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value)}".replace("-", "−")
    return in_figures(value, figures)


def in_figures(value: float, figures: int) -> str:
    """So many significant figures at most, such as 1.2e6."""
    mantissa, _, exponent = f"{value:.{figures}g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", "−")


def percent(share: float) -> str:
    """Such as 82 %, and 1.2 % where a whole number would say little."""
    hundredths = 100 * share
    text = number(hundredths, 2) if abs(hundredths) < 10 else f"{hundredths:.0f}"
    return in_percent(text.replace("-", "−"))


def in_percent(text: str) -> str:
    """The number with its sign, as the language writes it."""
    return sentence("joints.percent").format(n=text)


def seconds(value: float) -> str:
    """Such as 1.2 s, and milliseconds below one second."""
    return f"{number(1000 * value, 3)} ms" if value < 1 else f"{number(value, 3)} s"


def told(value: Any) -> str:
    """A plain value of any kind, for a table."""
    match value:
        case None:
            return sentence("diagnosis_page.nothing")
        case bool():
            return sentence("diagnosis_page.yes" if value else "diagnosis_page.no")
        case int() | float():
            return number(value)
        case Mapping():
            return ", ".join(f"{name}: {told(one)}" for name, one in value.items())
        case Sequence() if not isinstance(value, str):
            return ", ".join(map(told, value)) or sentence("diagnosis_page.nothing")
        case _:
            return str(value)
