"""The few pickle instructions that CIFAR's batch files are made of; nothing is ever called.

A pickle is a program that may name any function and call it. This reader knows dicts, lists,
numbers and byte strings, and one array of uint8; every other name or instruction is refused.
"""

from __future__ import annotations

import math
import pickletools
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Array", "Refused", "read_pickle"]

_NAMES = {
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",  # by which Python 3 writes byte strings for Python 2
}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1"),
    *("BINBYTES", "SHORT_BINBYTES", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
}
_STRINGS = {"BINSTRING", "SHORT_BINSTRING", "STRING"}
"""Of Python 2: bytes."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_NOTHING = {"PROTO", "FRAME"}


class Refused(Exception):
    """The file holds what no batch of CIFAR does."""


class Array:
    """An array, empty until the pickle states what is in it."""

    value: np.ndarray[Any, np.dtype[np.uint8]]


class _Name(NamedTuple):
    """What a pickle names; it stands for itself and is never looked up."""

    text: str


class _Dtype(NamedTuple):
    name: bytes | str


class _Mark:
    pass


def read_pickle(content: bytes) -> Any:
    """The dicts, lists, numbers, bytes and Arrays in `content`. Raises Refused."""
    try:
        return _Machine().run(content)
    except Refused:
        raise
    except Exception as error:  # cut short, or instructions that do not fit each other
        raise Refused(f"it is no whole pickle: {error}") from error


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for code, argument, _ in pickletools.genops(content):
            if code.name == "STOP":
                return self.stack.pop()
            self._do(code.name, argument)
        raise Refused("it has no end")

    def _do(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _VALUES:
            stack.append(argument)
        elif code in _STRINGS:
            stack.append(argument.encode("latin-1"))
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _PUT:
            self.memo[int(argument)] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in _GET:
            stack.append(self.memo[int(argument)])
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            self._name(argument)
        elif code in ("REDUCE", "BUILD"):
            argument = stack.pop()
            stack.append((_called if code == "REDUCE" else _built)(stack.pop(), argument))
        elif code not in _NOTHING:
            self._collect(code)

    def _name(self, text: str | None) -> None:
        if text is None:
            name, module = self.stack.pop(), self.stack.pop()
            text = f"{module} {name}"
        if text not in _NAMES:
            raise Refused(f"it names {text.replace(' ', '.')}, which could be called")
        self.stack.append(_Name(text))

    def _collect(self, code: str) -> None:
        stack = self.stack
        if code == "MARK":
            stack.append(_Mark)
        elif code in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[code]())
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(stack[-_TUPLES[code] :])]
        elif code == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif code == "LIST":
            stack.append(self._to_mark())
        elif code == "DICT":
            items = self._to_mark()
            stack.append(_keyed(items))
        elif code in ("APPEND", "APPENDS"):
            items = self._to_mark() if code == "APPENDS" else [stack.pop()]
            list.extend(stack[-1], items)
        elif code in ("SETITEM", "SETITEMS"):
            items = self._to_mark() if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
            dict.update(stack[-1], _keyed(items))
        else:
            raise Refused(f"it uses the instruction {code}")

    def _to_mark(self) -> list[Any]:
        """What stands above the last mark, taken off with it."""
        place = len(self.stack) - 1 - self.stack[::-1].index(_Mark)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items


def _keyed(items: list[Any]) -> dict[str | bytes, Any]:
    """Keys and values in turn. Of tuples within tuples, hashing a key could take for ever."""
    pairs = list(zip(items[::2], items[1::2], strict=True))
    if not all(isinstance(key, str | bytes) for key, _ in pairs):
        raise Refused("it holds a dict whose keys are not all text")
    return dict(pairs)


def _called(what: Any, arguments: tuple[Any, ...]) -> Any:
    match what:
        case _Name("_codecs encode"):
            text, _encoding = arguments
            return text.encode("latin-1")
        case _Name("numpy dtype"):
            return _Dtype(arguments[0])
        case _Name(name) if name.endswith("_reconstruct"):
            return Array()
    raise Refused("it calls what is no function")


def _built(what: Any, state: tuple[Any, ...]) -> Any:
    if isinstance(what, Array):
        _version, shape, dtype, by_column, content = state
        if dtype not in (_Dtype(b"u1"), _Dtype("u1")):
            raise Refused("it holds an array that is not of uint8")
        if not isinstance(content, bytes) or len(content) != math.prod(shape):
            raise Refused("it holds an array whose bytes do not fit its shape")
        flat = np.frombuffer(content, np.uint8)
        what.value = flat.reshape(shape, order="F" if by_column else "C")
    elif not isinstance(what, _Dtype):
        raise Refused("it gives a state to what has none")
    return what
