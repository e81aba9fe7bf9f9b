"""The passes of `cpu`, which says what each does, for one layout, type, activation and way to add.

A pass is a function of (work, part, first, last): one part of the batch, channels first to last.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from spiritlevel.kernels import (
    branched,
    channels,
    cheap,
    gates,
    lanes,
    mapped,
    mixed,
    planes,
    products,
    sliding,
)
from spiritlevel.kernels.compiled import array, bits_of, float_of, jit, naming
from spiritlevel.kernels.formulas import emptied_by_add, formulas

__all__ = ["DOUBLES", "INTEGERS", "STAGE", "STAGES", "WORK", "passes"]

STAGE, STAGES = ("next", "done", "step", "chunks", "group", "backwards"), 4
"""Of the work: two counters, the address of a step, how many chunks of how many channels, and
whether the last chunk comes first; so for each of at most four stages."""
INTEGERS = (
    *(f"{name}_{stage}" for stage in range(STAGES) for name in STAGE),
    *("steps", "at_once"),
    *("x", "out", "residual", "weight", "bias", "mean", "var", "running_mean", "running_var"),
    *("grad", "grad_residual", "grad_weight", "grad_bias"),
    *("partials", "coefficients", "sums", "training"),
    *("N", "C", "S", "fold", "spread", "part", "parts"),
    *("mean_before", "var_before", "weight_before", "bias_before"),
    *("grad_weight_before", "grad_bias_before", "kernel", "grad_kernel"),
    *("partials_before", "kernel_sums", "rings", "ring", "height", "width", "inner"),
    "geometry",
)
"""Of the work: the stages, addresses, how the tensor is cut, what Ghost modules need; int64."""
DOUBLES = ("eps", "slope", "share", "factor", "count", "eps_before")
"""Of the work, after them: float64."""
WORK = np.dtype([(name, "i8") for name in INTEGERS] + [(name, "f8") for name in DOUBLES])


_OWN: dict[str, Any] = {
    each.__name__.rpartition(".")[2]: each
    for each in (cheap, products, sliding, gates, branched, mixed, mapped)
}
"""Modules that give passes of a kind alone."""


@emptied_by_add
@cache
def passes(layout: str, kind: str, act: str, add: str) -> dict[str, Any]:
    """Each pass by its name; those of layout "channels" are the same for the other two.

    `layout` is "planes", "lanes", "channels" or one of `_OWN`, `kind` "f32", "f64" or "bf16". `add`
    is "", "add" (a residual, before the activation) or, on the way back, "mask" (the activation is
    a relu, and its output is at hand).
    """
    if layout in _OWN:
        own: dict[str, Any] = _OWN[layout].passes(kind)
        return own
    read = _reader(kind)
    if layout == "channels":
        with naming(kind):
            return channels.steps(read.number)
    act_of, back_of = formulas(act, read.number)
    module = planes if layout == "planes" else lanes
    with naming(layout, kind, act, add):
        apply_by = module.applying(read, act_of, add)
        descend_by = module.descending(read, back_of, add)
        found = {"collect": module.collecting(read), "reduce": module.reducing(read, back_of, add)}
        found |= {"apply": apply_by(read.put), "descend": descend_by(read.put)}
    with naming(layout, kind, act, add, "past the cache"):
        found["apply past the cache"] = apply_by(read.stream)
        found["descend past the cache"] = descend_by(read.stream)
    return found


@cache
def _reader(kind: str) -> SimpleNamespace:
    """How to get at each array by address: elements as numbers, and numbers."""
    with naming(kind):
        return _read(kind)


def _read(kind: str) -> SimpleNamespace:
    number: Any = np.float64 if kind == "f64" else np.float32
    element: Any = np.uint16 if kind == "bf16" else number
    number_size = np.dtype(number).itemsize
    read = SimpleNamespace(number=number, size=np.dtype(element).itemsize, number_size=number_size)
    for name in ("first", "second", "centre", "scale", "shift", "k1", "k2"):
        get, put, _ = array(name, number)
        read.__dict__.update({name: get, f"put_{name}": put})
    read.sums = (*array("sums", np.float64)[:2], *array("products", np.float64)[:2])
    for name in ("x", "grad", "residual"):
        with naming(name, kind):
            read.__dict__[name] = _loading(array(name, element)[0], kind)
    get, put, _ = array("grad_residual", element)
    with naming("grad_residual", kind):
        read.grad_residual, read.put_grad_residual = _loading(get, kind), _storing(put, kind)
    _, put, stream = array("out", element)
    with naming("out", kind):
        read.put = _storing(put, kind)
    with naming("stream", kind):
        read.stream = _storing(stream, kind)
    centre = read.centre

    @jit
    def coefficients(work, which, channel):
        """The address of a coefficient in a channel's first slot."""
        slot = which * (work.fold * work.C * work.spread) + channel * work.spread
        return work.coefficients + slot * number_size

    @jit
    def coefficient(work, which, channel):
        return centre(coefficients(work, which, channel), 0)

    read.coefficients, read.coefficient = coefficients, coefficient
    return read


def _loading(get: Any, kind: str) -> Any:
    if kind != "bf16":
        return get

    @jit
    def load(address, i):
        return float_of(np.uint32(get(address, i)) << np.uint32(16))

    return load


def _storing(put: Any, kind: str) -> Any:
    if kind != "bf16":
        return put

    @jit
    def store(address, i, value):
        """To the nearest, ties to even."""
        bits = bits_of(value)
        up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint16((bits + up) >> np.uint32(16))
        put(address, i, np.uint16(0x7FC0) if value != value else rounded)

    return store
