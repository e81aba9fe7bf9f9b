"""Vectors of float32 as values in compiled functions: what a loop over them keeps in registers.

LLVM vectorises a loop over neighbours by itself. Where an outer loop is over channels and an inner
one over positions, or over what is summed up, it does not; there a kernel says so. A processor of
shorter vectors takes one of ours as several.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from spiritlevel.kernels.compiled import jit, naming, size_of

__all__ = ["adding_parts", "instructions", "over", "vectors"]


class Vector(types.Type):
    """`lanes` numbers."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(f"float32x{lanes}")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.lanes))


@cache
def vectors(lanes: int, kind: str = "f32") -> Any:
    """Functions of vectors of `lanes` numbers; what is in memory is of `kind`, "f32" or "bf16".

    load(address), store(address, v), numbers(address) and keep(address, v) for float32 whatever the
    kind, splat(number), add, sub, mul, fma(a, b, c) = a b + c, and above(z, floor, v, other): v
    where z > floor or z is no number, else other; fetch(address) and claim(address) bring what
    will be read or written there nearer, if it is memory at all. Addresses need no alignment.
    `size` is an element's, in bytes. They come as a module, the one kind of namespace that Numba
    looks into.
    """
    known: Any = types.float32 if lanes == 1 else Vector(lanes)
    of, whole = instructions(lanes, kind), instructions(lanes)

    def made(build: Any) -> Any:
        return lambda _context, builder, _signature, given: build(builder, *given)

    def writes(build: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            build(builder, *given)
            return context.get_dummy_value()

        return intrinsic(lambda _, address, v: (types.void(types.int64, known), codegen))

    def two(build: Any) -> Any:
        return intrinsic(lambda _, a, b: (known(known, known), made(build)))

    def fetching(write: bool) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            of.fetch(builder, given[0], write)
            return context.get_dummy_value()

        return intrinsic(lambda _, address: (types.void(types.int64), codegen))

    found: Any = ModuleType(f"vectors_of_{lanes}_{kind}")
    found.__dict__.update(
        size=size_of(kind),
        load=intrinsic(lambda _, address: (known(types.int64), made(of.load))),
        numbers=intrinsic(lambda _, address: (known(types.int64), made(whole.load))),
        store=writes(of.store),
        keep=writes(whole.store),
        splat=intrinsic(lambda _, number: (known(types.float32), made(of.splat))),
        add=two(lambda builder, a, b: builder.fadd(a, b)),
        sub=two(lambda builder, a, b: builder.fsub(a, b)),
        mul=two(lambda builder, a, b: builder.fmul(a, b)),
        fma=intrinsic(lambda _, a, b, c: (known(known, known, known), made(of.fma))),
        fetch=fetching(False),
        claim=fetching(True),
        above=intrinsic(lambda _, z, floor, v, other: (known(*[known] * 4), made(of.above))),
    )
    return found


def over(name: str, kind: str, make: Any, *, wide: int = 0) -> Any:
    """A function of (at, row, rows, other) for all `at.count` channels, by vectors of 8, 4 and 1.

    `make(v)` gives what does it for the vector at channel j: (at, row, rows, other, j). As many
    channels as `wide` come first, as one vector, where what is around the numbers takes long.
    """
    made: list[Any] = []
    for lanes in (8, 4, 1, wide or 8):
        with naming(name, kind, str(lanes), "wide" if len(made) == 3 else ""):
            made.append(make(vectors(lanes, kind)) if wide or len(made) < 3 else made[0])
    eight, four, one, many = made
    most = wide or 1 << 30

    def all_of(at, row, rows, other):
        j = 0
        while j + most <= at.count:
            many(at, row, rows, other, j)
            j += most
        while j + 8 <= at.count:
            eight(at, row, rows, other, j)
            j += 8
        if j + 4 <= at.count:
            four(at, row, rows, other, j)
            j += 4
        while j < at.count:
            one(at, row, rows, other, j)
            j += 1

    with naming(name, kind):
        return jit(all_of)


_Sums = namedtuple("_Sums", "count to sums step")


def adding_parts(name: str) -> Any:
    """A function of (count, to, sums, step, parts): so many sums of float32, each over the parts.

    Addresses; a part begins `step` bytes after the one before.
    """
    fields = _Sums

    def making(v: Any) -> Any:
        @jit
        def add(at, parts, _rows, _other, j):
            found = v.numbers(at.sums + 4 * j)
            for part in range(1, parts):
                found = v.add(found, v.numbers(at.sums + part * at.step + 4 * j))
            v.keep(at.to + 4 * j, found)

        return add

    all_of = over(f"add_{name}", "f32", making)

    def adding(count, to, sums, step, parts):
        all_of(fields(count, to, sums, step), parts, 0, 0)

    with naming(name):
        return jit(adding)


@cache
def instructions(lanes: int, kind: str = "f32") -> SimpleNamespace:
    """The same by LLVM's builder: load(builder, address) and so on; `zero` is a constant."""
    one = ir.FloatType()
    made: Any = one if lanes == 1 else ir.VectorType(one, lanes)
    zero = ir.Constant(made, 0.0 if lanes == 1 else [0.0] * lanes)

    def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
        name = f"llvm.fma.{'' if lanes == 1 else f'v{lanes}'}f32"
        function = ir.FunctionType(made, [made] * 3)
        known = cgutils.get_or_insert_function(builder.module, function, name)
        return builder.call(known, [a, b, c])

    def splat(builder: Any, number: Any) -> Any:
        if lanes == 1:
            return number
        empty, first = ir.Constant(made, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return builder.shuffle_vector(builder.insert_element(empty, number, first), empty, zeros)

    def above(builder: Any, z: Any, floor: Any, v: Any, other: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<=", z, floor), other, v)

    def fetch(builder: Any, address: Any, write: bool) -> None:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        known = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        options = [ir.Constant(number, option) for option in (int(write), 3, 1)]
        builder.call(known, [builder.inttoptr(address, byte), *options])

    load, store = _memory(made, lanes, kind)
    return SimpleNamespace(
        made=made,
        zero=zero,
        load=load,
        store=store,
        fma=fma,
        splat=splat,
        above=above,
        fetch=fetch,
    )


def _memory(made: Any, lanes: int, kind: str) -> tuple[Any, Any]:
    """load and store of what is in memory as float32, or as the upper half of its bits."""
    half, whole = (
        ir.IntType(bits) if lanes == 1 else ir.VectorType(ir.IntType(bits), lanes)
        for bits in (16, 32)
    )
    size, there = (4, made) if kind == "f32" else (2, half)

    def at(builder: Any, address: Any) -> Any:
        return builder.inttoptr(address, there.as_pointer())

    def all_of(number: int) -> Any:
        return ir.Constant(whole, number if lanes == 1 else [number] * lanes)

    def load(builder: Any, address: Any) -> Any:
        found = builder.load(at(builder, address), align=size)
        if kind == "f32":
            return found
        return builder.bitcast(builder.shl(builder.zext(found, whole), all_of(16)), made)

    def rounded(builder: Any, value: Any) -> Any:
        """To the nearest, ties to even; no number stays none."""
        bits = builder.bitcast(value, whole)
        odd = builder.and_(builder.lshr(bits, all_of(16)), all_of(1))
        up = builder.add(bits, builder.add(odd, all_of(0x7FFF)))
        none = builder.fcmp_unordered("uno", value, value)
        upper = builder.lshr(builder.select(none, all_of(0x7FC00000), up), all_of(16))
        return builder.trunc(upper, half)

    def store(builder: Any, address: Any, value: Any) -> None:
        known = value if kind == "f32" else rounded(builder, value)
        builder.store(known, at(builder, address), align=size)

    return load, store
