"""The passes of `gpu`, in Triton: a tile is rows of lanes, summed down the rows.

A lane has one channel, a row is a stretch of memory. In channels-last, lane l of row r is channel
l % C of position r * K + l // C: K positions stand side by side where channels are few. In planes,
contiguous tensors (N, C, S), a tile has one lane, and its rows are the positions of that channel.
Position q of channel c is at

    (q // S) * outer + (q % S) * inner + c * step

of a tensor, which may be some channels of a wider one. In channels-last S is 1; in ghost batches,
whose samples are dealt out to groups, what a sample has of positions.

A program has the tiles of one part of the rows. The last to end in a column of programs merges the
sums of all parts, in their order: two runs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["apply", "collect", "descend", "merge", "reduce"]


@triton.jit
def _act(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """As `formulas` has it, and the next one too."""
    if ACT == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACT == "relu6":
        z = tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))
    elif ACT == "leaky_relu":
        z = tl.where(z > 0, z, z * SLOPE)
    elif ACT == "silu":
        z = z / (1 + tl.exp(-z))
    elif ACT == "hardswish":
        z = tl.where(z <= -3, 0.0 * z, tl.where(z >= 3, z, z * (z + 3) * 0.16666666666666666))
    elif ACT == "hardsigmoid":
        z = tl.where(z <= -3, 0.0, tl.where(z >= 3, 1.0, (z + 3) * 0.16666666666666666))
    elif ACT == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def _act_back(z, g, ACT: tl.constexpr, SLOPE: tl.constexpr):
    if ACT == "relu":
        g = tl.where(z <= 0, 0.0, g)
    elif ACT == "relu6":
        g = tl.where((z > 0) & (z < 6), g, 0.0)
    elif ACT == "leaky_relu":
        g = tl.where(z > 0, g, g * SLOPE)
    elif ACT == "silu":
        s = 1 / (1 + tl.exp(-z))
        g = g * s * (1 + z * (1 - s))
    elif ACT == "hardswish":
        g = tl.where(z <= -3, 0.0, tl.where(z >= 3, g, g * (z * 0.3333333333333333 + 0.5)))
    elif ACT == "hardsigmoid":
        g = tl.where((z > -3) & (z < 3), g * 0.16666666666666666, 0.0)
    elif ACT == "gelu":
        share = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
        g = g * (share + z * 0.3989422804014327 * tl.exp(-0.5 * z * z))
    return g


@triton.jit
def _at(row, lane, C, K, outer, inner, PLANES: tl.constexpr, S: tl.constexpr, UNIT: tl.constexpr):
    """Where a tile is in a tensor."""
    # Rows first: they have 64 bits where samples are so far apart that a product needs them.
    if PLANES:
        start = row // S * outer * S + row % S
        return start[:, None] + (lane.to(row.dtype) * S)[None, :]
    here = lane % (C * UNIT) + lane // (C * UNIT) * (outer * UNIT)
    group = tl.program_id(2)
    if S > 1:
        start = row // S * outer * UNIT + (row % S + group * S) * inner * UNIT
        return start[:, None] + here[None, :]
    return (row * (outer * UNIT * K))[:, None] + here[None, :]


@triton.jit
def _tile(C, K, positions, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr):
    """This program's lanes, which of them there are, how many rows each has, and a tile's rows."""
    lane = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = lane < C * K
    rows = tl.where(there, (positions - lane // C + K - 1) // K, 0)
    offset = tl.arange(0, BLOCK_R)
    if WIDE:
        offset = offset.to(tl.int64)
    return lane, there, rows, offset


@triton.jit
def _kept(row, rows, there, positions, PLANES: tl.constexpr):
    """Which of a tile there are; in planes by the row alone, so that whole vectors are known."""
    if PLANES:
        return (row < positions)[:, None] & there[None, :]
    return row[:, None] < rows[None, :]


@triton.jit
def _affine(channel, there, C, mean, var, weight, bias, EPS: tl.constexpr, ACC: tl.constexpr):
    """high and low, whose sum is the mean; 1 / deviation, a and b, as `cpu` has them."""
    group = tl.program_id(2) * C
    whole = tl.load(mean + group + channel, mask=there, other=0.0)
    high = whole.to(ACC)
    low = (whole - high).to(ACC)
    inverse = 1 / tl.sqrt(tl.load(var + group + channel, mask=there, other=1.0).to(ACC) + EPS)
    a = inverse
    if weight is not None:
        a *= tl.load(weight + channel, mask=there, other=0.0).to(ACC)
    b = -low * a
    if bias is not None:
        b += tl.load(bias + channel, mask=there, other=0.0).to(ACC)
    return high, low, inverse, a, b


@triton.jit
def _last(counter, column):
    """Whether this program is the last to end of those that share a column, whose sums are there
    by then; the counter begins anew."""
    tl.debug_barrier()
    ended = tl.atomic_add(counter + column, 1)
    last = ended == tl.num_programs(0) - 1
    if last:
        tl.store(counter + column, 0)
    tl.debug_barrier()
    return last


@triton.jit
def _folded(
    sums, scratch, lane, C, K, FOLD: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Of sums of the lanes, those of the channels; where each has one, they are that already."""
    if FOLD > 1:
        tl.store(scratch + lane, sums, mask=lane < C * K)
        tl.debug_barrier()
        side, channel = tl.arange(0, FOLD), tl.arange(0, CHANNELS)
        there = (side < K)[:, None] & (channel < C)[None, :]
        place = side[:, None] * C + channel[None, :]
        sums = tl.sum(tl.load(scratch + place, mask=there, other=0.0, volatile=True), 0)
        tl.debug_barrier()
    return sums


@triton.jit
def collect(
    x, outer, partials, scratch, counter, mean, var, running_mean, running_var, share, factor,
    R, C, K, inner, part,
    PLANES: tl.constexpr, S: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    FOLD: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, ACC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance; running statistics, where there are, by `share` towards them.

    A part's sums are around the mean of its first tile, so that none outgrows the deviations; the
    merge is that of Chan, Golub and LeVeque 1983.
    """
    p, positions = tl.program_id(0), R * S
    lane, there, rows, offset = _tile(C * UNIT, K, positions, BLOCK_R, BLOCK_C, WIDE)
    row = p * part + offset
    kept = _kept(row, rows, there, positions, PLANES)
    tile = tl.load(x + _at(row, lane, C, K, outer, inner, PLANES, S, UNIT), mask=kept, other=0.0)
    tile = tile.to(ACC)
    few = tl.minimum(tl.maximum(rows - p * part, 1), BLOCK_R).to(ACC)
    pivot = tl.sum(tile, 0) / few
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)
    apart = tl.where(kept, tile - pivot[None, :], 0.0)
    total, squares = apart, apart * apart
    for start in tl.range(BLOCK_R, part, BLOCK_R, num_stages=STAGES):
        row = p * part + start + offset
        kept = _kept(row, rows, there, positions, PLANES)
        at = _at(row, lane, C, K, outer, inner, PLANES, S, UNIT)
        tile = tl.load(x + at, mask=kept, other=0.0).to(ACC)
        apart = tl.where(kept, tile - pivot[None, :], 0.0)
        total += apart
        squares += apart * apart
    number = tl.minimum(tl.maximum(rows - p * part, 0), part).to(ACC)
    _conclude(
        pivot, total, squares, number, partials, scratch, counter, mean, var,
        running_mean, running_var, share, factor, lane, C * UNIT, K, positions,
        FOLD, CHANNELS, BLOCK_C, BLOCK_P, ACC,
    )  # fmt: skip


@triton.jit
def _conclude(
    pivot, total, squares, number, partials, scratch, counter, mean, var,
    running_mean, running_var, share, factor, lane, C, K, positions,
    FOLD: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """This part's sums are stored, and those of all parts merged by whoever ends last."""
    there, lanes, p = lane < C * K, C * K, tl.program_id(0)
    some = tl.where(number > 0, number, 1)
    of_part, of_squares = tl.sum(total, 0), tl.sum(squares, 0)
    near = of_part / some
    within = of_squares - of_part * near
    beyond = (of_squares == float("inf")) & (tl.abs(near) < float("inf"))
    within = tl.where(beyond, of_squares, within)
    whole = lanes * tl.num_programs(2)
    column = tl.program_id(2) * lanes + lane
    own = partials + p * (4 * whole) + column
    tl.store(own, pivot, mask=there)
    tl.store(own + whole, near, mask=there)
    tl.store(own + 2 * whole, within, mask=there)
    tl.store(own + 3 * whole, number, mask=there)
    if _last(counter, tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)):
        _settle(
            partials, scratch, mean, var, running_mean, running_var, share, factor, lane, C, K,
            positions, tl.num_programs(0), FOLD, CHANNELS, BLOCK_C, BLOCK_P, ACC,
        )  # fmt: skip


@triton.jit
def _base(at, whole, there):
    """The mean of the first part: what is far from all others there is far in what is found, too.

    A pivot, of a few rows, may be far from everything, and sums around it have lost the rest.
    """
    base = tl.load(at, mask=there, volatile=True) + tl.load(at + whole, mask=there, volatile=True)
    return tl.where(tl.abs(base) < float("inf"), base, 0.0)


@triton.jit
def _settle(
    partials, scratch, mean, var, running_mean, running_var, share, factor, lane, C, K,
    positions, parts,
    FOLD: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    there, group, lanes = lane < C * K, tl.program_id(2), C * K
    whole, column = lanes * tl.num_programs(2), group * lanes + lane
    base = _base(partials + group * lanes + tl.where(there, lane % C, 0), whole, None)
    shift = tl.zeros([BLOCK_P, BLOCK_C], tl.float64)
    spread = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    lost = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for start in range(0, parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        kept = (p < parts)[:, None] & there[None, :]
        at = partials + p[:, None] * (4 * whole) + column[None, :]
        pivot = tl.load(at, mask=kept, other=0.0, volatile=True)
        near = tl.load(at + whole, mask=kept, other=0.0, volatile=True)
        within = tl.load(at + 2 * whole, mask=kept, other=0.0, volatile=True)
        number = tl.load(at + 3 * whole, mask=kept, other=0.0, volatile=True)
        apart = (pivot.to(tl.float64) - base[None, :].to(tl.float64)) + near.to(tl.float64)
        apart = tl.where(number > 0, apart, 0.0)
        shift += number.to(tl.float64) * apart
        apart = apart.to(ACC)
        more = within + number * apart * apart - lost  # as Kahan adds
        further = spread + more
        lost = tl.where(further < float("inf"), further - spread - more, 0.0)
        spread = further
    total = _folded(tl.sum(shift, 0), scratch, lane, C, K, FOLD, CHANNELS)
    squares = _folded(tl.sum(spread.to(tl.float64), 0), scratch, lane, C, K, FOLD, CHANNELS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, CHANNELS)
    there = channel < C
    base = _base(partials + group * lanes + channel, whole, there)
    beside = total / positions
    biased = squares / positions - beside * beside
    biased = tl.where(biased < 0, 0.0, biased)
    middle = base.to(tl.float64) + beside
    tl.store(mean + group * C + channel, middle, mask=there)
    tl.store(var + group * C + channel, biased, mask=there)
    if running_mean is not None:
        before = tl.load(running_mean + channel, mask=there, other=0.0)
        after = before * (1 - share) + middle.to(ACC) * share
        tl.store(running_mean + channel, after, mask=there)
        before = tl.load(running_var + channel, mask=there, other=0.0)
        after = before * (1 - share) + (biased * factor).to(ACC) * share
        tl.store(running_var + channel, after, mask=there)


@triton.jit
def apply(
    x, outer, y, y_outer, residual, r_outer, mean, var, weight, bias,
    R, C, K, inner, part,
    ACT: tl.constexpr, SLOPE: tl.constexpr, EPS: tl.constexpr,
    PLANES: tl.constexpr, S: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y = act((x - high) a + b [+ residual])."""
    # What `collect` read last may be in the cache yet.
    p, chans = tl.num_programs(0) - 1 - tl.program_id(0), C * UNIT
    lane, there, rows, offset = _tile(chans, K, R * S, BLOCK_R, BLOCK_C, WIDE)
    channel = lane % chans
    high, _low, _inverse, a, b = _affine(channel, there, chans, mean, var, weight, bias, EPS, ACC)
    for start in range(0, part, BLOCK_R):
        row = p * part + start + offset
        kept = _kept(row, rows, there, R * S, PLANES)
        at = _at(row, lane, C, K, outer, inner, PLANES, S, UNIT)
        apart = tl.load(x + at, mask=kept, other=0.0).to(ACC) - high[None, :]
        z = apart * a[None, :] + b[None, :]
        if residual is not None:
            at = _at(row, lane, C, K, r_outer, inner, PLANES, S, UNIT)
            z += tl.load(residual + at, mask=kept, other=0.0).to(ACC)
        at = _at(row, lane, C, K, y_outer, inner, PLANES, S, UNIT)
        tl.store(y + at, _act(z, ACT, SLOPE).to(y.dtype.element_ty), mask=kept)


@triton.jit
def reduce(
    grad, g_outer, x, outer, residual, r_outer, before, b_outer, partials, scratch, counter,
    mean, var, weight, bias, grad_weight, grad_bias,
    R, C, K, inner, part,
    ACT: tl.constexpr, SLOPE: tl.constexpr, EPS: tl.constexpr, MASK: tl.constexpr,
    PLANES: tl.constexpr, S: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    FOLD: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, ACC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """g = act'(z) grad, kept in `before` if that is there; gradients of weight and bias.

    `residual` is what was added; with MASK it is the output, which tells a relu's slope.
    """
    p, parts, chans = tl.program_id(0), tl.num_programs(0), C * UNIT
    lane, there, rows, offset = _tile(chans, K, R * S, BLOCK_R, BLOCK_C, WIDE)
    channel, lanes = lane % chans, chans * K
    high, _low, _inverse, a, b = _affine(channel, there, chans, mean, var, weight, bias, EPS, ACC)
    total = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    product = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for start in tl.range(0, part, BLOCK_R, num_stages=STAGES):
        row = p * part + start + offset
        kept = _kept(row, rows, there, R * S, PLANES)
        at = _at(row, lane, C, K, g_outer, inner, PLANES, S, UNIT)
        g = tl.load(grad + at, mask=kept, other=0.0).to(ACC)
        at = _at(row, lane, C, K, outer, inner, PLANES, S, UNIT)
        apart = tl.load(x + at, mask=kept, other=0.0).to(ACC) - high[None, :]
        z = apart * a[None, :] + b[None, :]
        if residual is not None:
            at = _at(row, lane, C, K, r_outer, inner, PLANES, S, UNIT)
            other = tl.load(residual + at, mask=kept, other=0.0).to(ACC)
            z = other if MASK else z + other
        g = _act_back(z, g, ACT, SLOPE)
        if before is not None:
            at = _at(row, lane, C, K, b_outer, inner, PLANES, S, UNIT)
            tl.store(before + at, g.to(before.dtype.element_ty), mask=kept)
        total += g
        product += tl.where(kept, g * apart, 0.0)
    whole = lanes * tl.num_programs(2)
    own = partials + p * (2 * whole) + tl.program_id(2) * lanes + lane
    tl.store(own, tl.sum(total, 0), mask=there)
    tl.store(own + whole, tl.sum(product, 0), mask=there)
    if _last(counter, tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)):
        _settle_sums(
            partials, scratch, grad_weight, grad_bias, mean, var, EPS, lane, chans, K, parts,
            FOLD, CHANNELS, BLOCK_C, BLOCK_P, ACC,
        )  # fmt: skip


@triton.jit
def _settle_sums(
    partials, scratch, grad_weight, grad_bias, mean, var, EPS: tl.constexpr, lane, C, K, parts,
    FOLD: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    there, group, lanes = lane < C * K, tl.program_id(2), C * K
    whole = lanes * tl.num_programs(2)
    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    product = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for start in range(0, parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        kept = (p < parts)[:, None] & there[None, :]
        at = partials + p[:, None] * (2 * whole) + (group * lanes + lane)[None, :]
        total += tl.load(at, mask=kept, other=0.0, volatile=True)
        product += tl.load(at + whole, mask=kept, other=0.0, volatile=True)
    of_bias = _folded(tl.sum(total, 0), scratch, lane, C, K, FOLD, CHANNELS).to(ACC)
    of_weight = _folded(tl.sum(product, 0), scratch, lane, C, K, FOLD, CHANNELS).to(ACC)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, CHANNELS)
    there = channel < C
    _, low, inverse, _, _ = _affine(channel, there, C, mean, var, None, None, EPS, ACC)
    tl.store(grad_bias + group * C + channel, of_bias, mask=there)
    of_weight = (of_weight - low * of_bias) * inverse
    tl.store(grad_weight + group * C + channel, of_weight, mask=there)


@triton.jit
def descend(
    grad, g_outer, x, outer, grad_x, d_outer, mean, var, weight, bias, grad_weight, grad_bias,
    values, R, C, K, inner, part,
    ACT: tl.constexpr, SLOPE: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr,
    PLANES: tl.constexpr, S: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """grad_x = a g + k2 (x - high) + k1, with `values` of a channel; a g alone in eval."""
    p, chans = tl.num_programs(0) - 1 - tl.program_id(0), C * UNIT
    lane, there, rows, offset = _tile(chans, K, R * S, BLOCK_R, BLOCK_C, WIDE)
    channel = lane % chans
    high, low, inverse, a, b = _affine(channel, there, chans, mean, var, weight, bias, EPS, ACC)
    if TRAINING:
        place = tl.program_id(2) * chans + channel
        slope = tl.load(grad_weight + place, mask=there, other=0.0) * inverse
        slope = -a * slope / values
        base = -a * tl.load(grad_bias + place, mask=there, other=0.0) / values - low * slope
    for start in range(0, part, BLOCK_R):
        row = p * part + start + offset
        kept = _kept(row, rows, there, R * S, PLANES)
        at = _at(row, lane, C, K, g_outer, inner, PLANES, S, UNIT)
        g = tl.load(grad + at, mask=kept, other=0.0).to(ACC)
        at = _at(row, lane, C, K, outer, inner, PLANES, S, UNIT)
        apart = tl.load(x + at, mask=kept, other=0.0).to(ACC) - high[None, :]
        g = a[None, :] * _act_back(apart * a[None, :] + b[None, :], g, ACT, SLOPE)
        if TRAINING:
            g += slope[None, :] * apart + base[None, :]
        at = _at(row, lane, C, K, d_outer, inner, PLANES, S, UNIT)
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=kept)


@triton.jit
def merge(rows, mean, var, ranks, C, BLOCK_C: tl.constexpr):
    """Of each row the count, C means and C sums of squares around them: the mean and the biased
    variance of all, in the order of the rows, as Chan, Golub and LeVeque have it."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    there, width = channel < C, 1 + 2 * C
    count = tl.load(rows)
    middle = tl.load(rows + 1 + channel, mask=there, other=0.0)
    squares = tl.load(rows + 1 + C + channel, mask=there, other=0.0)
    for rank in range(1, ranks):
        row = rows + rank * width
        more = tl.load(row)
        apart = tl.load(row + 1 + channel, mask=there, other=0.0) - middle
        within = tl.load(row + 1 + C + channel, mask=there, other=0.0)
        whole = count + more
        share = more / tl.where(whole > 0, whole, 1)
        middle += apart * share
        squares += within + apart * apart * count * share
        count = whole
    tl.store(mean + channel, middle, mask=there)
    tl.store(var + channel, squares / tl.where(count > 0, count, 1), mask=there)
