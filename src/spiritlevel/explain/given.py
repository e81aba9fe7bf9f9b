"""Numbers and arrays as they are given: read exactly, or refused."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritlevel.errors import UsageError
from spiritlevel.explain.rational import MAX_EXPONENT, ZERO

__all__ = ["MAX_NUMBERS", "check_settings", "load_array", "parse_number", "parse_numbers"]

MAX_NUMBERS = 10_000
MAX_DIGITS = 100


def parse_number(text: str, where: str) -> Fraction:
    """`text` without rounding: "0.1" is 1/10. `where` it stood: "at position 2", "for --eps"."""
    got = f"got {text[:40] + '...' * (len(text) > 40)!r} {where}"
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise UsageError(f"{got}, wanted a number such as 3, -0.5 or 1e3") from None
    if not number.is_finite():
        raise UsageError(f"{got}, wanted a finite number: one nan or inf spoils a whole batch")
    if not number:
        return ZERO
    if abs(number.adjusted()) > MAX_EXPONENT or len(number.as_tuple().digits) > MAX_DIGITS:
        raise UsageError(
            f"{got}, wanted 0 or a size from 1e-{MAX_EXPONENT} to 1e{MAX_EXPONENT}, "
            f"in at most {MAX_DIGITS} digits"
        )
    return Fraction(number)


def parse_numbers(text: str) -> tuple[Fraction, ...]:
    """Numbers with white space or commas between them; a gap between two commas is an error."""
    words = re.split(r"\s*,\s*|\s+", text.strip().strip(",").strip())
    if words == [""]:
        raise UsageError("got no numbers, wanted at least one: spiritlevel explain 1 3 5")
    if len(words) > MAX_NUMBERS:
        raise UsageError(
            f"got {len(words):,} numbers, wanted at most {MAX_NUMBERS:,}; "
            "save more of them as an array of N x C with numpy.save and give the .npy file"
        )
    return tuple(parse_number(word, f"at position {i}") for i, word in enumerate(words, start=1))


def load_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, not read before it is used. Never unpickles. Raises UsageError."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except Exception as error:  # a broken header fails anywhere: in tokenize, ast, mmap
        raise UsageError(
            f"got {str(path)!r}, a .npy file that cannot be used ({error}); "
            "wanted plain numbers, saved by numpy.save: pickled objects are never loaded"
        ) from error


def check_settings(eps: Fraction | float, momentum: Fraction | float) -> None:
    """Raises UsageError for eps < 0 or a momentum outside 0 to 1."""
    if eps < 0:
        raise UsageError(f"got eps = {float(eps):g}, wanted 0 or more: it is added to a variance")
    if not 0 <= momentum <= 1:
        raise UsageError(
            f"got momentum = {float(momentum):g}, wanted 0 to 1: it is the weight of the new batch"
        )
