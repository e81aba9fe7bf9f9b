"""How images are made a network's input, as a file of weights tells it: a dict that JSON can hold.

| key | value |
|---|---|
| `size` | pixels a side |
| `channels` | 1 (grey) or 3 (RGB) |
| `mean`, `std` | a list with a number a channel: `(pixel / 255 - mean) / std` |
| `classes` | the name of each output: the user's text, of any script |
| `data` | what it was trained on, for a reader; may be left out |

A file is anyone's: what of it is used has been through `misfit`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LARGEST_SIDE", "misfit"]

LARGEST_SIDE = 4096
"""Pixels; a larger one would ask for more memory than an image is worth."""
_SMALLEST_STD = 1e-6
_LARGEST = 1e6
"""Of mean and std, which are of pixels in [0, 1]."""


def misfit(told: Any) -> str | None:
    """What is wrong with it, as "size is 0; wanted ..."; None where it can be used."""
    if not isinstance(told, dict):
        return f"it is a {type(told).__name__}; wanted a dict"
    size, channels = told.get("size"), told.get("channels")
    if type(size) is not int or not 1 <= size <= LARGEST_SIDE:
        return f"size is {_short(size)}; wanted 1 to {LARGEST_SIDE} pixels a side"
    if type(channels) is not int or channels not in (1, 3):
        return f"channels is {_short(channels)}; wanted 1 or 3"
    for name, low in (("mean", -_LARGEST), ("std", _SMALLEST_STD)):
        numbers = told.get(name)
        if not isinstance(numbers, list) or len(numbers) != channels or not _within(numbers, low):
            return (
                f"{name} is {_short(numbers)}; wanted {channels} number(s) between {low:g} and "
                f"{_LARGEST:g}, one a channel"
            )
    classes = told.get("classes")
    if not isinstance(classes, list) or not classes or not all(type(c) is str for c in classes):
        return f"classes is {_short(classes)}; wanted a list of names, one an output"
    if type(told.get("data", "")) is not str:
        return f"data is {_short(told['data'])}; wanted text"
    return None


def _within(numbers: list[Any], low: float) -> bool:
    return all(type(n) in (int, float) and low < n < _LARGEST for n in numbers)


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "a whole number beyond all use"  # Python refuses to print the longest
    text = ascii(value) if not isinstance(value, list) else f"a list of {len(value)}: {value[:3]!a}"
    return text if len(text) <= 80 else f"{text[:80]}..."
