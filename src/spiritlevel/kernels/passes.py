"""The passes of `cpu`, which says what each does, as Numba compiles them.

A pass is a function of (work, part, first, last): one part of the batch, channels first to last.
`planes` and `rows` are the two layouts. A lane is one of the `C * fold` numbers of a row.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
from numba import carray, njit

from spiritlevel.kernels.compiled import FASTMATH, bits_of, float_of, pointer
from spiritlevel.kernels.formulas import formulas

__all__ = ["DOUBLES", "INTEGERS", "WORK", "passes"]

INTEGERS = (
    *("next", "chunks", "backwards", "x", "y", "residual", "grad", "grad_x", "grad_residual"),
    *("mean", "var", "weight", "bias", "grad_weight", "grad_bias", "coefficients", "partials"),
    *(
        "running_mean",
        "running_var",
        "rows",
        "N",
        "C",
        "S",
        "fold",
        "part",
        "parts",
        "group",
        "training",
    ),
)
"""Of the work: addresses and sizes, int64."""
DOUBLES = ("eps", "slope", "share", "factor")
"""Of the work, after them: float64."""
WORK = np.dtype([(name, "i8") for name in INTEGERS] + [(name, "f8") for name in DOUBLES])

_BLOCK = 4096
"""Elements that are still in the first cache when they are looked at again."""
_CENTRE, _SCALE, _SHIFT, _K1, _K2 = range(5)


def _jit(function):
    return njit(fastmath=FASTMATH, error_model="numpy")(function)


@_jit
def _blend(mean, other, share):
    """A weighted mean; of infinite ones their sum, which reordered products would not be."""
    if math.isfinite(mean) and math.isfinite(other):
        return mean * (1.0 - share) + other * share
    return mean + other


def passes(rows: bool, kind: str, act: str, add: str) -> SimpleNamespace:
    """Each pass by its name, for one layout, element type, activation and way to add.

    `kind` is "f32", "f64" or "bf16". `add` is "", "add" (a residual, before the activation) or, on
    the way back, "mask" (the activation is a relu, and its output is at hand).
    """
    read = _reader(kind)
    channels = _channels(read)
    act_of, back_of = formulas(act, read.number)
    steps = (_rows if rows else _planes)(read, act_of, back_of, add)
    collect, apply, reduce, descend = steps
    settle, prepare, settle_sums = channels.settle, channels.prepare, channels.settle_sums

    @_jit
    def forward(work, part, first, last):
        collect(work, part, first, last)
        settle(work, part, first, last)
        apply(work, part, first, last)

    @_jit
    def backward(work, part, first, last):
        prepare(work, part, first, last)
        reduce(work, part, first, last)
        settle_sums(work, part, first, last)
        descend(work, part, first, last)

    channels.__dict__.update({step.__name__: step for step in (*steps, forward, backward)})
    return channels


def _reader(kind: str) -> SimpleNamespace:
    """How to get at elements, coefficients and float64 numbers by address."""
    number = np.float64 if kind == "f64" else np.float32
    element = np.uint16 if kind == "bf16" else number
    element_size, number_size = np.dtype(element).itemsize, np.dtype(number).itemsize

    @_jit
    def elements(address, offset, count):
        return carray(pointer(address + offset * element_size), count, element)

    @_jit
    def numbers(address, offset, count):
        return carray(pointer(address + offset * number_size), count, number)

    @_jit
    def doubles(address, offset, count):
        return carray(pointer(address + offset * 8), count, np.float64)

    @_jit
    def coefficients(work, which):
        lanes = work.C * work.fold
        return numbers(work.coefficients, which * lanes, lanes)

    if kind == "bf16":

        @_jit
        def load(bits):
            return float_of(np.uint32(bits) << np.uint32(16))

        @_jit
        def store(value):
            """To the nearest, ties to even."""
            bits = bits_of(value)
            up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            rounded = np.uint16((bits + up) >> np.uint32(16))
            return np.uint16(0x7FC0) if value != value else rounded
    else:

        @_jit
        def load(value):
            return value

        store = load
    return SimpleNamespace(
        number=number,
        elements=elements,
        numbers=numbers,
        doubles=doubles,
        coefficients=coefficients,
        load=load,
        store=store,
    )


def _channels(read: SimpleNamespace) -> SimpleNamespace:
    """What is done once a channel, between the passes over the elements."""
    number, numbers, doubles, coefficients = (
        read.number,
        read.numbers,
        read.doubles,
        read.coefficients,
    )

    @_jit
    def factor(work, c):
        """weight / sqrt(var + eps)."""
        weight = float(numbers(work.weight, c, 1)[0]) if work.weight != 0 else 1.0
        return weight / math.sqrt(doubles(work.var, c, 1)[0] + work.eps)

    @_jit
    def prepare(work, _part, first, last):
        """From mean and variance to the coefficients of `apply`, in every lane of a channel."""
        centre, scale = coefficients(work, _CENTRE), coefficients(work, _SCALE)
        shift = coefficients(work, _SHIFT)
        for c in range(first, last):
            mean, a = doubles(work.mean, c, 1)[0], factor(work, c)
            bias = float(numbers(work.bias, c, 1)[0]) if work.bias != 0 else 0.0
            high = number(mean)
            low = mean - float(high) if math.isfinite(mean) else 0.0
            for lane in range(c, work.C * work.fold, work.C):
                centre[lane], scale[lane], shift[lane] = high, number(a), number(bias - low * a)

    @_jit
    def settle(work, _part, first, last):
        """Merge the means and squares of all parts and lanes, as Chan does; then `prepare`."""
        lanes = work.C * work.fold
        for c in range(first, last):
            mean, square, seen = 0.0, 0.0, 0.0
            for part in range(work.parts):
                rows = min(work.N - part * work.part, work.part) * work.S
                for lane in range(c, lanes, work.C):
                    found = doubles(work.partials, 2 * part * lanes, 2 * lanes)
                    share = rows / (seen + rows)
                    delta = found[lane] - mean
                    square += found[lanes + lane] + delta * delta * seen * share
                    mean = _blend(mean, found[lane], share)
                    seen += rows
            doubles(work.mean, c, 1)[0] = mean
            doubles(work.var, c, 1)[0] = square / seen
        prepare(work, 0, first, last)

    @_jit
    def settle_sums(work, _part, first, last):
        """From the sums to the gradients of weight and bias, and the coefficients of `descend`."""
        lanes, k1, k2 = work.C * work.fold, coefficients(work, _K1), coefficients(work, _K2)
        count = work.N * work.fold * work.S
        for c in range(first, last):
            total, product = 0.0, 0.0
            for part in range(work.parts):
                found = doubles(work.partials, 2 * part * lanes, 2 * lanes)
                for lane in range(c, lanes, work.C):
                    total += found[lane]
                    product += found[lanes + lane]
            mean, a = doubles(work.mean, c, 1)[0], factor(work, c)
            low = mean - float(number(mean)) if math.isfinite(mean) else 0.0
            deviation = math.sqrt(doubles(work.var, c, 1)[0] + work.eps)
            weight_grad = (product - low * total) / deviation
            numbers(work.grad_weight, c, 1)[0] = number(weight_grad)
            numbers(work.grad_bias, c, 1)[0] = number(total)
            slope = -a * weight_grad / (count * deviation)
            for lane in range(c, lanes, work.C):
                k2[lane], k1[lane] = number(slope), number(-a * total / count - low * slope)

    @_jit
    def follow(work, _part, first, last):
        """The running statistics go by a share towards the batch's."""
        mean, var = doubles(work.mean, 0, work.C), doubles(work.var, 0, work.C)
        means, vars_ = numbers(work.running_mean, 0, work.C), numbers(work.running_var, 0, work.C)
        share, rest = work.share, 1.0 - work.share
        for c in range(first, last):
            means[c] = number(rest * float(means[c]) + share * mean[c])
            vars_[c] = number(rest * float(vars_[c]) + share * (work.factor * var[c]))

    return SimpleNamespace(prepare=prepare, settle=settle, settle_sums=settle_sums, follow=follow)


def _planes(read, act_of, back_of, add):
    number, elements, doubles, coefficients, load, store = (
        *(read.number, read.elements, read.doubles),
        *(read.coefficients, read.load, read.store),
    )
    adds, masks = add == "add", add == "mask"

    @_jit
    def exactly(work, n, stop, c, offset, width):
        """Mean and sum of squares in float64: for a block that float32 has not the range for."""
        count, total, square = (stop - n) * width, 0.0, 0.0
        for m in range(n, stop):
            row = elements(work.x, (m * work.C + c) * work.S + offset, width)
            for i in range(width):
                total += float(load(row[i]))
        mean = total / count
        for m in range(n, stop):
            row = elements(work.x, (m * work.C + c) * work.S + offset, width)
            for i in range(width):
                square += (float(load(row[i])) - mean) ** 2
        return mean, square

    @_jit
    def block(work, n, stop, c, offset, width):
        """Mean and sum of squares of samples n to stop; corrected for the mean's own rounding."""
        count, total = (stop - n) * width, number(0)
        for m in range(n, stop):
            row = elements(work.x, (m * work.C + c) * work.S + offset, width)
            for i in range(width):
                total += load(row[i])
        centre = total / number(count)
        rest, square = number(0), number(0)
        for m in range(n, stop):
            row = elements(work.x, (m * work.C + c) * work.S + offset, width)
            for i in range(width):
                d = load(row[i]) - centre
                rest += d
                square += d * d
        if not math.isfinite(square):
            return exactly(work, n, stop, c, offset, width)
        rest64 = float(rest) / count
        return float(centre) + rest64, float(square) - rest64 * rest64 * count

    @_jit
    def collect(work, part, first, last):
        C, S = work.C, work.S
        begin, end = part * work.part, min(work.N, (part + 1) * work.part)
        means, squares = (
            doubles(work.partials, 2 * part * C, C),
            doubles(work.partials, (2 * part + 1) * C, C),
        )
        means[first:last] = 0.0
        squares[first:last] = 0.0
        step, seen = max(1, _BLOCK // (S * (last - first))), 0
        for n in range(begin, end, step):
            stop = min(n + step, end)
            for offset in range(0, S, _BLOCK):
                width = min(_BLOCK, S - offset)
                count = (stop - n) * width
                share = count / (seen + count)
                for c in range(first, last):
                    mean, square = block(work, n, stop, c, offset, width)
                    delta = mean - means[c]
                    squares[c] += square + delta * delta * seen * share
                    means[c] = _blend(means[c], mean, share)
                seen += count

    @_jit
    def apply(work, part, first, last):
        C, S, slope = work.C, work.S, number(work.slope)
        centre, scale = coefficients(work, _CENTRE), coefficients(work, _SCALE)
        shift = coefficients(work, _SHIFT)
        for n in range(part * work.part, min(work.N, (part + 1) * work.part)):
            for c in range(first, last):
                at, high, a, b = (n * C + c) * S, centre[c], scale[c], shift[c]
                x, y = elements(work.x, at, S), elements(work.y, at, S)
                residual = elements(work.residual, at, S)
                for i in range(S):
                    z = (load(x[i]) - high) * a + b
                    if adds:
                        z += load(residual[i])
                    y[i] = store(act_of(z, slope))

    @_jit
    def reduce(work, part, first, last):
        C, S, slope = work.C, work.S, number(work.slope)
        centre, scale = coefficients(work, _CENTRE), coefficients(work, _SCALE)
        shift = coefficients(work, _SHIFT)
        totals, products = (
            doubles(work.partials, 2 * part * C, C),
            doubles(work.partials, (2 * part + 1) * C, C),
        )
        totals[first:last] = 0.0
        products[first:last] = 0.0
        for n in range(part * work.part, min(work.N, (part + 1) * work.part)):
            for c in range(first, last):
                high, a, b = centre[c], scale[c], shift[c]
                for offset in range(0, S, _BLOCK):
                    at, width = (n * C + c) * S + offset, min(_BLOCK, S - offset)
                    x, grad = elements(work.x, at, width), elements(work.grad, at, width)
                    residual = elements(work.residual, at, width)
                    grad_residual = elements(work.grad_residual, at, width)
                    total, product = number(0), number(0)
                    for i in range(width):
                        d = load(x[i]) - high
                        z = load(residual[i]) if masks else d * a + b
                        if adds:
                            z += load(residual[i])
                        g = back_of(z, slope, load(grad[i]))
                        if adds or masks:
                            grad_residual[i] = store(g)
                        total += g
                        product += g * d
                    totals[c] += float(total)
                    products[c] += float(product)

    @_jit
    def descend(work, part, first, last):
        C, S, slope, training = work.C, work.S, number(work.slope), work.training != 0
        centre, scale = coefficients(work, _CENTRE), coefficients(work, _SCALE)
        shift, k1s, k2s = (
            coefficients(work, _SHIFT),
            coefficients(work, _K1),
            coefficients(work, _K2),
        )
        for n in range(part * work.part, min(work.N, (part + 1) * work.part)):
            for c in range(first, last):
                at, high, a, b, k1, k2 = (
                    (n * C + c) * S,
                    centre[c],
                    scale[c],
                    shift[c],
                    k1s[c],
                    k2s[c],
                )
                x, grad = elements(work.x, at, S), elements(work.grad, at, S)
                grad_x, grad_residual = (
                    elements(work.grad_x, at, S),
                    elements(work.grad_residual, at, S),
                )
                for i in range(S):
                    d = load(x[i]) - high
                    if adds or masks:
                        g = load(grad_residual[i])
                    else:
                        g = back_of(d * a + b, slope, load(grad[i]))
                    grad_x[i] = store(a * g + (k2 * d + k1) if training else a * g)

    return collect, apply, reduce, descend


def _rows(read, act_of, back_of, add):
    number, elements, doubles, coefficients, load, store = (
        *(read.number, read.elements, read.doubles),
        *(read.coefficients, read.load, read.store),
    )
    adds, masks = add == "add", add == "mask"

    @_jit
    def exactly(work, begin, stop, lane, lanes):
        """Mean and sum of squares in float64: for a block that float32 has not the range for."""
        total, square = 0.0, 0.0
        for n in range(begin, stop):
            total += float(load(elements(work.x, n * lanes + lane, 1)[0]))
        mean = total / (stop - begin)
        for n in range(begin, stop):
            square += (float(load(elements(work.x, n * lanes + lane, 1)[0])) - mean) ** 2
        return mean, square

    @_jit
    def collect(work, part, first, last):
        lanes = work.C * work.fold
        begin, end = part * work.part, min(work.N, (part + 1) * work.part)
        means, squares = (
            doubles(work.partials, 2 * part * lanes, lanes),
            doubles(work.partials, (2 * part + 1) * lanes, lanes),
        )
        means[:] = 0.0
        squares[:] = 0.0
        centre, rest, square = (
            np.empty(lanes, number),
            np.empty(lanes, number),
            np.empty(lanes, number),
        )
        step, seen = max(16, _BLOCK // lanes), 0
        for n in range(begin, end, step):
            stop = min(n + step, end)
            count = stop - n
            part_of, share = number(1) / number(count), count / (seen + count)
            centre[:] = number(0)
            for m in range(n, stop):
                x = elements(work.x, m * lanes, lanes)
                for c in range(lanes):
                    centre[c] += load(x[c])
            for c in range(lanes):
                centre[c] *= part_of
                rest[c] = number(0)
                square[c] = number(0)
            for m in range(n, stop):
                x = elements(work.x, m * lanes, lanes)
                for c in range(lanes):
                    d = load(x[c]) - centre[c]
                    rest[c] += d
                    square[c] += d * d
            beyond = 0
            for c in range(lanes):
                beyond += 0 if math.isfinite(square[c]) else 1
            if beyond == 0:
                for c in range(lanes):
                    off = float(rest[c]) / count
                    mean = float(centre[c]) + off
                    delta = mean - means[c]
                    squares[c] += (
                        float(square[c]) - off * off * count + delta * delta * seen * share
                    )
                    means[c] = _blend(means[c], mean, share)
            else:
                for c in range(lanes):
                    mean, exact = exactly(work, n, stop, c, lanes)
                    delta = mean - means[c]
                    squares[c] += exact + delta * delta * seen * share
                    means[c] = _blend(means[c], mean, share)
            seen += count

    @_jit
    def apply(work, part, first, last):
        lanes, slope = work.C * work.fold, number(work.slope)
        centre, scale = coefficients(work, _CENTRE), coefficients(work, _SCALE)
        shift = coefficients(work, _SHIFT)
        for n in range(part * work.part, min(work.N, (part + 1) * work.part)):
            x, y = elements(work.x, n * lanes, lanes), elements(work.y, n * lanes, lanes)
            residual = elements(work.residual, n * lanes, lanes)
            for c in range(lanes):
                z = (load(x[c]) - centre[c]) * scale[c] + shift[c]
                if adds:
                    z += load(residual[c])
                y[c] = store(act_of(z, slope))

    @_jit
    def reduce(work, part, first, last):
        lanes, slope = work.C * work.fold, number(work.slope)
        centre, scale = coefficients(work, _CENTRE), coefficients(work, _SCALE)
        shift = coefficients(work, _SHIFT)
        totals, products = (
            doubles(work.partials, 2 * part * lanes, lanes),
            doubles(work.partials, (2 * part + 1) * lanes, lanes),
        )
        totals[:] = 0.0
        products[:] = 0.0
        total, product = np.empty(lanes, number), np.empty(lanes, number)
        begin, end = part * work.part, min(work.N, (part + 1) * work.part)
        step = max(16, _BLOCK // lanes)
        for n in range(begin, end, step):
            total[:] = number(0)
            product[:] = number(0)
            for m in range(n, min(n + step, end)):
                x, grad = elements(work.x, m * lanes, lanes), elements(work.grad, m * lanes, lanes)
                residual = elements(work.residual, m * lanes, lanes)
                grad_residual = elements(work.grad_residual, m * lanes, lanes)
                for c in range(lanes):
                    d = load(x[c]) - centre[c]
                    z = load(residual[c]) if masks else d * scale[c] + shift[c]
                    if adds:
                        z += load(residual[c])
                    g = back_of(z, slope, load(grad[c]))
                    if adds or masks:
                        grad_residual[c] = store(g)
                    total[c] += g
                    product[c] += g * d
            for c in range(lanes):
                totals[c] += float(total[c])
                products[c] += float(product[c])

    @_jit
    def descend(work, part, first, last):
        lanes, slope, training = work.C * work.fold, number(work.slope), work.training != 0
        centre, scale = coefficients(work, _CENTRE), coefficients(work, _SCALE)
        shift, k1, k2 = coefficients(work, _SHIFT), coefficients(work, _K1), coefficients(work, _K2)
        for n in range(part * work.part, min(work.N, (part + 1) * work.part)):
            x, grad = elements(work.x, n * lanes, lanes), elements(work.grad, n * lanes, lanes)
            grad_x = elements(work.grad_x, n * lanes, lanes)
            grad_residual = elements(work.grad_residual, n * lanes, lanes)
            for c in range(lanes):
                d = load(x[c]) - centre[c]
                if adds or masks:
                    g = load(grad_residual[c])
                else:
                    g = back_of(d * scale[c] + shift[c], slope, load(grad[c]))
                step = scale[c] * g
                grad_x[c] = store(step + (k2[c] * d + k1[c]) if training else step)

    return collect, apply, reduce, descend
