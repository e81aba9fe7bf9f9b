"""Exact numbers, and how they are written: a root that cannot be drawn stays √(8/3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, localcontext
from fractions import Fraction
from typing import Any

__all__ = [
    "MAX_EXPONENT",
    "ONE",
    "ZERO",
    "Exact",
    "Root",
    "decimal",
    "exact",
    "readable",
    "root",
    "rounded",
    "to_json",
]

ZERO, ONE = Fraction(0), Fraction(1)
MAX_EXPONENT = 100  # of a number that is let in: every square and variance is a finite float64
# Digits enough for the square of the largest such number, with its decimals.
_PRECISE = Context(prec=2 * MAX_EXPONENT + 50)


@dataclass(frozen=True)
class Root:
    """sign * √square + offset, an irrational number kept exact. Made by `root`."""

    square: Fraction
    sign: int = 1
    offset: Fraction = ZERO

    def __str__(self) -> str:
        inner = f"√{self.square}" if self.square.denominator == 1 else f"√({self.square})"
        signed = inner if self.sign > 0 else f"-{inner}"
        if not self.offset:
            return signed
        return f"{signed} {'+' if self.offset > 0 else '-'} {abs(self.offset)}"


Exact = Fraction | Root


def root(square: Fraction, sign: int = 1, offset: Fraction = ZERO) -> Exact:
    """sign * √square + offset: a Fraction where the root can be drawn, otherwise a Root."""
    over, under = math.isqrt(square.numerator), math.isqrt(square.denominator)
    if over * over == square.numerator and under * under == square.denominator:
        return sign * Fraction(over, under) + offset
    return Root(square, sign, offset)


def decimal(number: Exact | float) -> Decimal:
    """`number` to 250 digits."""
    with localcontext(_PRECISE):
        if isinstance(number, Root):
            return number.sign * decimal(number.square).sqrt() + decimal(number.offset)
        if isinstance(number, Fraction):
            return Decimal(number.numerator) / Decimal(number.denominator)
        return Decimal(number)


def rounded(number: Exact | float, places: int = 4) -> str:
    """`number` with that many decimals, halves away from zero: 2.6667."""
    with localcontext(_PRECISE):
        # + 0 turns -0.0000 into 0.0000
        return f"{decimal(number).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP) + 0:f}"


def readable(number: Exact | float) -> str:
    """With 4 decimals, or 5 digits where 4 decimals would lose too many: 0.0066667, 6.6667e-7."""
    value = decimal(number)
    if not value or Decimal("0.1") <= abs(value) < 10**9:
        return rounded(number)
    if abs(value) >= 10**9 or abs(value) < Decimal("1e-4"):
        return f"{value:.4e}"
    return rounded(number, 4 - value.adjusted())


def exact(number: Exact, width: int = 16) -> str | None:
    """`number` in full, as 0.2, 8/3 or √(8/3); None if that takes more than `width` characters."""
    if isinstance(number, Fraction):
        with localcontext(Context(prec=width)) as context:
            ratio = Decimal(number.numerator) / Decimal(number.denominator)
            text = f"{ratio.normalize():f}"
            if not context.flags[Inexact] and len(text) <= width:
                return text
    text = str(number)
    return text if len(text) <= width else None


def to_json(value: Any) -> Any:
    """An explanation as dicts and lists; an exact number as {"exact": "8/3", "value": 2.666...}."""
    if isinstance(value, Fraction | Root):
        return {"exact": str(value), "value": float(decimal(value))}
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value
