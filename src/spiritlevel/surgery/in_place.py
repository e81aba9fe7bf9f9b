"""Python's in-place operators as functions, for graphs.

torch.fx records `a += b` as `a + b`, which is another thing where `a` has a second reader, and
writes `operator.iadd` as a statement, which is another thing where `a` is a number.
"""

from __future__ import annotations

from typing import Any

from torch import fx

__all__ = ["WRITING", "Proxy", "iadd"]


def iadd(a: Any, b: Any) -> Any:
    a += b
    return a


def isub(a: Any, b: Any) -> Any:
    a -= b
    return a


def imul(a: Any, b: Any) -> Any:
    a *= b
    return a


def itruediv(a: Any, b: Any) -> Any:
    a /= b
    return a


def ifloordiv(a: Any, b: Any) -> Any:
    a //= b
    return a


def imod(a: Any, b: Any) -> Any:
    a %= b
    return a


def ipow(a: Any, b: Any) -> Any:
    a **= b
    return a


def iand(a: Any, b: Any) -> Any:
    a &= b
    return a


def ior(a: Any, b: Any) -> Any:
    a |= b
    return a


def ixor(a: Any, b: Any) -> Any:
    a ^= b
    return a


def imatmul(a: Any, b: Any) -> Any:
    a @= b
    return a


def setitem(a: Any, key: Any, value: Any) -> None:
    a[key] = value


WRITING = (
    *(iadd, isub, imul, itruediv, ifloordiv, imod, ipow, iand, ior, ixor, imatmul),
    setitem,
)
"""Each writes its first argument."""


class Proxy(fx.Proxy):
    """torch.fx's symbol, with the in-place operators that it lacks."""


def _give(function: Any) -> None:
    def record(self: Proxy, *others: Any) -> fx.Proxy | None:
        made = self.tracer.create_proxy("call_function", function, (self, *others), {})
        return None if function is setitem else made

    setattr(Proxy, f"__{function.__name__}__", record)


for _function in WRITING:
    _give(_function)
