"""What Numba's Python lacks for a kernel that is called by address: memory, a counter, bits.

Also `exp` and `erf` in float32 that LLVM turns into vector instructions; the C library's are called
number by number.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from spiritlevel.kernels.linked import Linked

__all__ = [
    "FASTMATH",
    "OPTIONS",
    "add_to",
    "array",
    "at_address",
    "bits_of",
    "call",
    "erf32",
    "exp32",
    "finite",
    "float_of",
    "jit",
    "named",
    "naming",
    "size_of",
    "span",
    "wait",
]

FASTMATH = {"reassoc", "contract", "nsz"}
"""Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning."""
OPTIONS = {"fastmath": FASTMATH, "error_model": "numpy", "_nrt": False}
"""Without `nrt`, Numba's memory of its own, which kernels do not need, they load in no time."""


_name: ContextVar[str] = ContextVar("_name", default="")


@contextmanager
def naming(*parts: str) -> Iterator[None]:
    """Within the block `jit` gives a function this name beside its own.

    Closures of one `def` need it. Numba keeps the compiled ones of a name in one index, in which
    two processes that write at once can point one at the other's code; and it tells their symbols
    apart by a count that begins anew in each process.
    """
    token = _name.set("_".join(re.sub(r"\W", "_", part) or "none" for part in parts))
    try:
        yield
    finally:
        _name.reset(token)


def named(function: Any) -> Any:
    function.__qualname__ += f"_{_name.get()}" if _name.get() else ""
    return function


def jit(function: Any) -> Any:
    """For what only kernels call: there is no way in from Python."""
    options = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(**options, pipeline_class=Linked)(named(function))


@jit
def finite(number):
    """Not math.isfinite: Numba makes that of `x - x`, which FASTMATH may take for 0."""
    return abs(number) < math.inf


def size_of(kind: str) -> Any:
    """Bytes of an element of "f32" or "bf16"."""
    return np.int64({"f32": 4, "bf16": 2}[kind])


@jit
def span(work, part):
    """Of what a tensor is cut into parts by, samples or rows: the first of a part, and its end."""
    return part * work.part, min(work.N, (part + 1) * work.part)


@intrinsic
def add_to(_context, _counter, _value):
    """Adds to the int64 at an address, and gives what it was: each thread sees another number."""

    def codegen(_context, builder, _signature, arguments):
        at = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", at, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def wait(_context):
    """Lets another thread of the processor, or of the system, go first."""

    def codegen(context, builder, _signature, _arguments):
        if sys.platform.startswith("linux"):
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call(_context, _function, _work, _part, _first, _last):
    """A function of four int64, by its address."""

    def codegen(context, builder, _signature, arguments):
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 4)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


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


def at_address(dtype: np.dtype[Any]) -> Any:
    """A function from an address to the record there, whose fields are its attributes."""
    kind = from_dtype(dtype)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return intrinsic(lambda _, address: (kind(types.int64), codegen))


_ARRAYS = (
    *("x", "grad", "residual", "out", "grad_residual", "first", "second"),
    *("centre", "scale", "shift", "k1", "k2"),
    *("sums", "products", "per_channel", "given", "slots", "stages"),
)
_NUMBA = {
    np.uint16: (types.uint16, ir.IntType(16)),
    np.int64: (types.int64, ir.IntType(64)),
    np.float32: (types.float32, ir.FloatType()),
    np.float64: (types.float64, ir.DoubleType()),
}


def array(name: str, element: Any) -> tuple[Any, Any, Any]:
    """get(address, i), put(address, i, value) and stream(address, i, value) of one of `_ARRAYS`.

    LLVM is told that no two of them overlap, so that it vectorises a loop without first comparing
    all their addresses, which costs more than a short loop. `stream` goes past the cache: a line is
    not read before it is written. Its address must be a multiple of 32 bytes.
    """
    (element_of, type_), size = _NUMBA[element], np.dtype(element).itemsize

    def alone(builder: Any, access: Any) -> Any:
        module = builder.module
        domain = module.add_metadata(["spiritlevel"])
        scopes = {other: module.add_metadata([other, domain]) for other in _ARRAYS}
        access.set_metadata("alias.scope", module.add_metadata([scopes.pop(name)]))
        access.set_metadata("noalias", module.add_metadata(list(scopes.values())))
        return access

    def at(builder: Any, arguments: Any) -> Any:
        return builder.gep(builder.inttoptr(arguments[0], type_.as_pointer()), [arguments[1]])

    def load(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return alone(builder, builder.load(at(builder, arguments), align=size))

    def store(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        alone(builder, builder.store(arguments[2], at(builder, arguments), align=size))
        return context.get_dummy_value()

    def store_past(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        # What LLVM asks for before it vectorises such a store; the first of a vector is aligned.
        access = alone(builder, builder.store(arguments[2], at(builder, arguments), align=32))
        one = ir.Constant(ir.IntType(32), 1)
        access.set_metadata("nontemporal", builder.module.add_metadata([one]))
        return context.get_dummy_value()

    where = (types.int64, types.int64)
    get = intrinsic(lambda _, address, i: (element_of(*where), load))
    put = intrinsic(lambda _, address, i, value: (types.void(*where, element_of), store))
    stream = intrinsic(lambda _, address, i, value: (types.void(*where, element_of), store_past))
    return get, put, stream


_F = np.float32
# ln 2 in two parts, so that x - n ln 2 is exact in its leading bits.
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.4426950408889634), _F(0.693359375), _F(-2.12194440e-4)
_LOWEST, _HIGHEST, _INFINITE = _F(-87.3), _F(88.3), _F(math.inf)
_TAYLOR = tuple(_F(1 / math.factorial(n)) for n in range(8))


@jit
def exp32(x):
    """e**x in float32, within 5 units in the last place; 0 below -87.3, infinite above 88.3.

    x = n ln 2 + r with |r| <= ln 2 / 2, where eight terms of Taylor's series suffice; 2**n is made
    by writing its exponent. FASTMATH lets LLVM add the two parts of ln 2 up beforehand, which for
    large |x| costs all but the first of those units.
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


@jit
def erf32(x):
    """The error function within 6e-7: Abramowitz and Stegun 7.1.26, as in torch's vector code."""
    size = abs(x)
    t = _F(1) / (_F(1) + _F(0.3275911) * size)
    series = _F(-1.453152027) + t * _F(1.061405429)
    series = _F(0.254829592) + t * (_F(-0.284496736) + t * (_F(1.421413741) + t * series))
    value = _F(1) - t * series * exp32(-size * size)
    return value if x >= _F(0) else -value
