"""What Numba's Python lacks for a kernel that is called by address: pointers, a counter, bits.

Also `exp` and `erf` in float32 that LLVM turns into vector instructions; the C library's are called
number by number.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["FASTMATH", "bits_of", "erf32", "exp32", "float_of", "next_of", "pointer"]

FASTMATH = {"reassoc", "contract", "nsz"}
"""Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning."""


@intrinsic
def next_of(_context, _counter):
    """The int64 at an address, which is then one more: each thread gets another number."""

    def codegen(_context, builder, _signature, arguments):
        word = ir.IntType(64)
        at = builder.inttoptr(arguments[0], word.as_pointer())
        return builder.atomic_rmw("add", at, ir.Constant(word, 1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def float_of(_context, _bits):
    """The float32 with these 32 bits."""

    def codegen(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def bits_of(_context, _number):
    """The 32 bits of a float32."""

    def codegen(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def pointer(_context, _address):
    """An address as a pointer."""

    def codegen(context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


_F = np.float32
# ln 2 in two parts, so that x - n ln 2 is exact in its leading bits.
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.4426950408889634), _F(0.693359375), _F(-2.12194440e-4)
_LOWEST, _HIGHEST, _INFINITE = _F(-87.3), _F(88.3), _F(math.inf)
_TAYLOR = tuple(_F(1 / math.factorial(n)) for n in range(8))


@njit(fastmath=FASTMATH)
def exp32(x):
    """e**x in float32, within 3 units in the last place; 0 below -87.3, infinite above 88.3.

    x = n ln 2 + r with |r| <= ln 2 / 2, where eight terms of Taylor's series suffice; 2**n is made
    by writing its exponent.
    """
    bounded = min(max(x, _LOWEST), _HIGHEST)
    n = np.floor(bounded * _LOG2E + _F(0.5))
    r = (bounded - n * _LN2_HIGH) - n * _LN2_LOW
    t0, t1, t2, t3, t4, t5, t6, t7 = _TAYLOR
    series = t0 + r * (t1 + r * (t2 + r * (t3 + r * (t4 + r * (t5 + r * (t6 + r * t7))))))
    power = float_of(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))
    value = series * power
    value = _INFINITE if x > _HIGHEST else value
    value = _F(0) if x < _LOWEST else value
    return x if x != x else value


@njit(fastmath=FASTMATH)
def erf32(x):
    """The error function within 5e-7: Abramowitz and Stegun 7.1.26, as in torch's vector code."""
    size = abs(x)
    t = _F(1) / (_F(1) + _F(0.3275911) * size)
    series = _F(-1.453152027) + t * _F(1.061405429)
    series = _F(0.254829592) + t * (_F(-0.284496736) + t * (_F(1.421413741) + t * series))
    value = _F(1) - t * series * exp32(-size * size)
    return value if x >= _F(0) else -value
