"""The activations, as a number goes through them and as a gradient comes back.

Each is a pair, act(z, slope) and act'(z, slope) g, written so that NaN, infinity and the kinks do
what torch's own kernels do. `slope` is leaky_relu's alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np

from spiritlevel.errors import UsageError
from spiritlevel.kernels.compiled import erf32, exp32, jit, naming

__all__ = ["OF_THE_PACKAGE", "add", "emptied_by_add", "formulas"]


def _identity(_number: Any) -> tuple[Any, Any]:
    return jit(lambda z, slope: z), jit(lambda z, slope, g: g)


def _relu(number: Any) -> tuple[Any, Any]:
    zero = number(0)
    return (
        jit(lambda z, slope: zero if z <= zero else z),
        jit(lambda z, slope, g: zero if z <= zero else g),
    )


def _relu6(number: Any) -> tuple[Any, Any]:
    zero, six = number(0), number(6)
    return (
        jit(lambda z, slope: zero if z <= zero else (six if z >= six else z)),
        jit(lambda z, slope, g: g if z > zero and z < six else zero),
    )


def _leaky_relu(number: Any) -> tuple[Any, Any]:
    zero = number(0)
    return (
        jit(lambda z, slope: z if z > zero else z * slope),
        jit(lambda z, slope, g: g if z > zero else g * slope),
    )


def _hardsigmoid(number: Any) -> tuple[Any, Any]:
    zero, one, three, sixth = number(0), number(1), number(3), number(1 / 6)
    return (
        jit(lambda z, slope: zero if z <= -three else (one if z >= three else (z + three) * sixth)),
        jit(lambda z, slope, g: g * sixth if z > -three and z < three else zero),
    )


def _hardswish(number: Any) -> tuple[Any, Any]:
    zero, three, sixth, third, half = (number(n) for n in (0, 3, 1 / 6, 1 / 3, 0.5))
    return (
        jit(
            lambda z, slope: (
                zero * z if z <= -three else (z if z >= three else z * (z + three) * sixth)
            )
        ),
        jit(
            lambda z, slope, g: (
                zero if z <= -three else (g if z >= three else g * (z * third + half))
            )
        ),
    )


def _silu(number: Any) -> tuple[Any, Any]:
    exp, one = _exp(number), number(1)

    @jit
    def backward(z, slope, g):
        s = one / (one + exp(-z))
        return g * s * (one + z * (one - s))

    return jit(lambda z, slope: z / (one + exp(-z))), backward


def _gelu(number: Any) -> tuple[Any, Any]:
    exp, erf = _exp(number), _erf(number)
    one, half, root, density = (number(n) for n in (1, 0.5, 0.5**0.5, (2 * math.pi) ** -0.5))

    @jit
    def backward(z, slope, g):
        share = half * (one + erf(z * root))
        return g * (share + z * density * exp(-half * z * z))

    return jit(lambda z, slope: half * z * (one + erf(z * root))), backward


def _exp(number: Any) -> Any:
    return exp32 if number is np.float32 else jit(lambda x: math.exp(x))


def _erf(number: Any) -> Any:
    return erf32 if number is np.float32 else jit(lambda x: math.erf(x))


Pair = Callable[[Any], tuple[Any, Any]]
_Cached = TypeVar("_Cached")

_BY_NAME: dict[str, Pair] = {
    "identity": _identity,
    "relu": _relu,
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "silu": _silu,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "gelu": _gelu,
}
OF_THE_PACKAGE = frozenset(_BY_NAME)
"""Others were added since: what is compiled of those is not told by the package's sources."""

_CACHES: list[Any] = []


def add(name: str, pair: Pair) -> None:
    """Gives the activation `name` of your own its formulas; once more, and the new ones count.

    `pair` makes act(z, slope) and act'(z, slope) g, both by `compiled.jit`, for numbers of the type
    that it is called with. The name stands in `activations.ACTIVATIONS`. A forward pass from before
    is to be run again: its backward pass would take the new ones. Raises UsageError for a name that
    the package itself has, and for what makes nothing.
    """
    if not callable(pair):
        raise UsageError(f"got {pair!r} for {name!r}; wanted a function that makes two formulas")
    if name in OF_THE_PACKAGE:
        raise UsageError(
            f"got a formula for {name!r}, which is the package's own; wanted a name other than "
            f"{', '.join(sorted(OF_THE_PACKAGE))}"
        )
    if name in _BY_NAME:
        for each in _CACHES:
            each.cache_clear()
    _BY_NAME[name] = pair


def emptied_by_add(cached: _Cached) -> _Cached:
    """For a cache of what formulas have become a part of: it forgets those that are replaced."""
    _CACHES.append(cached)
    return cached


@emptied_by_add
@cache
def formulas(name: str, number: Any) -> tuple[Any, Any]:
    """act(z, slope) and act'(z, slope) g, for float32 or float64 numbers, compiled."""
    with naming(name, number.__name__):
        return _BY_NAME[name](number)
