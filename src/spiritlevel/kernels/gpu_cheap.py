"""The passes of `gpu_ghost`, in Triton: the depthwise 3x3 convolution of a Ghost module.

Channels-last. A tile is squares of 2 x 2 positions by channels, so that what is around a square, 4
x 4 positions, is read once for four of them; what is outside of a map counts as 0. Parts, sums and
their merge are those of `gpu_passes`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spiritlevel.kernels.gpu_passes import _act, _act_back, _affine, _conclude, _last

__all__ = ["convolve", "unjoin"]


@triton.jit
def _place(square, squares, H: tl.constexpr, W: tl.constexpr):
    """The square's first position, its row and column, and which of its four there are."""
    wide: tl.constexpr = (W + 1) // 2
    high: tl.constexpr = (H + 1) // 2
    h, w = square // wide % high * 2, square % wide * 2
    q = (square // (wide * high) * H + h) * W + w
    there, right, below = square < squares, w + 1 < W, h + 1 < H
    return q, h, w, (there, there & right, there & below, there & right & below)


@triton.jit
def _four(x, q, h, w, dy: tl.constexpr, lane, lanes, outer, there, H: tl.constexpr, W: tl.constexpr,
          ACC: tl.constexpr):  # fmt: skip
    """Of a row of what is around the squares, the four columns."""
    row = there & (h + dy >= 0) & (h + dy < H)
    at = x + (q + dy * W)[:, None] * outer + lane[None, :]
    within = (lane < lanes)[None, :]
    return (
        tl.load(at - outer, mask=(row & (w > 0))[:, None] & within, other=0.0).to(ACC),
        tl.load(at, mask=row[:, None] & within, other=0.0).to(ACC),
        tl.load(at + outer, mask=(row & (w + 1 < W))[:, None] & within, other=0.0).to(ACC),
        tl.load(at + 2 * outer, mask=(row & (w + 2 < W))[:, None] & within, other=0.0).to(ACC),
    )


@triton.jit
def _taps(taps, lane, lanes, FLIPPED: tl.constexpr, ACC: tl.constexpr):
    """All nine, by channel; flipped is back."""
    at, there = taps + lane * 9, lane < lanes
    first: tl.constexpr = 8 if FLIPPED else 0
    step: tl.constexpr = -1 if FLIPPED else 1
    return (
        tl.load(at + first, mask=there, other=0.0).to(ACC)[None, :],
        tl.load(at + first + step, mask=there, other=0.0).to(ACC)[None, :],
        tl.load(at + first + 2 * step, mask=there, other=0.0).to(ACC)[None, :],
        tl.load(at + first + 3 * step, mask=there, other=0.0).to(ACC)[None, :],
        tl.load(at + first + 4 * step, mask=there, other=0.0).to(ACC)[None, :],
        tl.load(at + first + 5 * step, mask=there, other=0.0).to(ACC)[None, :],
        tl.load(at + first + 6 * step, mask=there, other=0.0).to(ACC)[None, :],
        tl.load(at + first + 7 * step, mask=there, other=0.0).to(ACC)[None, :],
        tl.load(at + first + 8 * step, mask=there, other=0.0).to(ACC)[None, :],
    )


@triton.jit
def _nine(t, above, here, below, j: tl.constexpr):
    """The convolution at a column of the square."""
    y = t[0] * above[j] + t[1] * above[j + 1] + t[2] * above[j + 2]
    y += t[3] * here[j] + t[4] * here[j + 1] + t[5] * here[j + 2]
    return y + (t[6] * below[j] + t[7] * below[j + 1] + t[8] * below[j + 2])


@triton.jit
def _put(y, q, outer, lane, lanes, tile, there, ACC: tl.constexpr):
    """Stored, and as it is then: 0 where there is nothing."""
    kept, stored = there[:, None] & (lane < lanes)[None, :], tile.to(y.dtype.element_ty)
    tl.store(y + q[:, None] * outer + lane[None, :], stored, mask=kept)
    return tl.where(kept, stored.to(ACC), 0.0)


@triton.jit
def _gathered(tile, pivot, there, lane, lanes, total, squares):
    kept = there[:, None] & (lane < lanes)[None, :]
    apart = tl.where(kept, tile - pivot[None, :], 0.0)
    return total + apart, squares + apart * apart


@triton.jit
def convolve(
    p, outer, taps, y, partials, scratch, counter, mean, var, running_mean, running_var, share,
    factor, count, positions, C, part,
    H: tl.constexpr, W: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    FOLD: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y = p * taps, and what `collect` takes of it, while it is at hand."""
    lane = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes, apart = C * UNIT, outer * UNIT
    t = _taps(taps, lane, lanes, False, ACC)
    offset = tl.arange(0, BLOCK_R)
    if WIDE:
        offset = offset.to(tl.int64)
    pivot = tl.zeros([BLOCK_C], ACC)
    total = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    squares = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    number = tl.zeros([BLOCK_R], ACC)
    for start in range(0, part, BLOCK_R):
        q, h, w, there = _place(tl.program_id(0) * part + start + offset, count, H, W)
        a = _four(p, q, h, w, -1, lane, lanes, apart, there[0], H, W, ACC)
        b = _four(p, q, h, w, 0, lane, lanes, apart, there[0], H, W, ACC)
        c = _four(p, q, h, w, 1, lane, lanes, apart, there[0], H, W, ACC)
        d = _four(p, q, h, w, 2, lane, lanes, apart, there[0], H, W, ACC)
        y0 = _put(y, q, lanes, lane, lanes, _nine(t, a, b, c, 0), there[0], ACC)
        y1 = _put(y, q + 1, lanes, lane, lanes, _nine(t, a, b, c, 1), there[1], ACC)
        y2 = _put(y, q + W, lanes, lane, lanes, _nine(t, b, c, d, 0), there[2], ACC)
        y3 = _put(y, q + W + 1, lanes, lane, lanes, _nine(t, b, c, d, 1), there[3], ACC)
        if start == 0:
            few = tl.maximum(tl.sum(there[0].to(ACC), 0), 1)
            pivot = tl.sum(y0, 0) / few
            pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)
        total, squares = _gathered(y0, pivot, there[0], lane, lanes, total, squares)
        total, squares = _gathered(y1, pivot, there[1], lane, lanes, total, squares)
        total, squares = _gathered(y2, pivot, there[2], lane, lanes, total, squares)
        total, squares = _gathered(y3, pivot, there[3], lane, lanes, total, squares)
        number += there[0].to(ACC) + there[1].to(ACC) + there[2].to(ACC) + there[3].to(ACC)
    of_lane = tl.where(lane < lanes, tl.sum(number, 0), 0.0)
    _conclude(
        pivot, total, squares, of_lane, partials, scratch, counter, mean, var,
        running_mean, running_var, share, factor, lane, lanes, 1, positions,
        FOLD, CHANNELS, BLOCK_C, BLOCK_P, ACC,
    )  # fmt: skip


@triton.jit
def _before(x, q, lane, lanes, high, scale, shift, there, ACT: tl.constexpr, ACC: tl.constexpr):
    """x - high, z, and p as it was written, for the taps met it so: 0 where there is nothing."""
    kept = there[:, None] & (lane < lanes)[None, :]
    stored = tl.load(x + q[:, None] * lanes + lane[None, :], mask=kept, other=0.0)
    apart = stored.to(ACC) - high[None, :]
    z = apart * scale[None, :] + shift[None, :]
    return apart, z, tl.where(kept, _act(z, ACT, 0.0).to(stored.dtype).to(ACC), 0.0)


@triton.jit
def _read(grad, q, outer, lane, lanes, there, ACC: tl.constexpr):
    kept = there[:, None] & (lane < lanes)[None, :]
    return tl.load(grad + q[:, None] * outer + lane[None, :], mask=kept, other=0.0).to(ACC)


@triton.jit
def _tap(sum, p, above, below, j: tl.constexpr):
    """With what a tap met at the four positions."""
    return sum + (p[0] * above[j] + p[1] * above[j + 1] + p[2] * below[j] + p[3] * below[j + 1])


@triton.jit
def unjoin(
    back, grad, g_outer, x, taps, before, partials, counter,
    mean, var, weight, bias, grad_weight, grad_bias, grad_taps, count, positions, C, part,
    ACT: tl.constexpr, EPS: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Back through the convolution and the activation before it.

    `back` is the gradient of the convolution's output, `grad` what reaches its input beside that,
    p = act(bn(x)); `before` is what reaches the norm.
    """
    lane = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes, wide = C * UNIT, g_outer * UNIT
    within = lane < lanes
    high, _low, _inverse, s, b = _affine(lane, within, lanes, mean, var, weight, bias, EPS, ACC)
    t = _taps(taps, lane, lanes, True, ACC)
    offset = tl.arange(0, BLOCK_R)
    if WIDE:
        offset = offset.to(tl.int64)
    total = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    product = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t0 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t1 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t2 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t3 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t4 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t5 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t6 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t7 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    t8 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for start in range(0, part, BLOCK_R):
        q, h, w, there = _place(tl.program_id(0) * part + start + offset, count, H, W)
        v0 = _four(back, q, h, w, -1, lane, lanes, lanes, there[0], H, W, ACC)
        v1 = _four(back, q, h, w, 0, lane, lanes, lanes, there[0], H, W, ACC)
        v2 = _four(back, q, h, w, 1, lane, lanes, lanes, there[0], H, W, ACC)
        v3 = _four(back, q, h, w, 2, lane, lanes, lanes, there[0], H, W, ACC)
        x0, z0, p0 = _before(x, q, lane, lanes, high, s, b, there[0], ACT, ACC)
        x1, z1, p1 = _before(x, q + 1, lane, lanes, high, s, b, there[1], ACT, ACC)
        x2, z2, p2 = _before(x, q + W, lane, lanes, high, s, b, there[2], ACT, ACC)
        x3, z3, p3 = _before(x, q + W + 1, lane, lanes, high, s, b, there[3], ACT, ACC)
        p = (p0, p1, p2, p3)
        t8 = _tap(t8, p, v0, v1, 0)
        t7 = _tap(t7, p, v0, v1, 1)
        t6 = _tap(t6, p, v0, v1, 2)
        t5 = _tap(t5, p, v1, v2, 0)
        t4 = _tap(t4, p, v1, v2, 1)
        t3 = _tap(t3, p, v1, v2, 2)
        t2 = _tap(t2, p, v2, v3, 0)
        t1 = _tap(t1, p, v2, v3, 1)
        t0 = _tap(t0, p, v2, v3, 2)
        g0 = _read(grad, q, wide, lane, lanes, there[0], ACC) + _nine(t, v0, v1, v2, 0)
        g1 = _read(grad, q + 1, wide, lane, lanes, there[1], ACC) + _nine(t, v0, v1, v2, 1)
        g2 = _read(grad, q + W, wide, lane, lanes, there[2], ACC) + _nine(t, v1, v2, v3, 0)
        g3 = _read(grad, q + W + 1, wide, lane, lanes, there[3], ACC) + _nine(t, v1, v2, v3, 1)
        g0 = _put(before, q, lanes, lane, lanes, _act_back(z0, g0, ACT, 0.0), there[0], ACC)
        g1 = _put(before, q + 1, lanes, lane, lanes, _act_back(z1, g1, ACT, 0.0), there[1], ACC)
        g2 = _put(before, q + W, lanes, lane, lanes, _act_back(z2, g2, ACT, 0.0), there[2], ACC)
        g3 = _put(before, q + W + 1, lanes, lane, lanes, _act_back(z3, g3, ACT, 0.0), there[3], ACC)
        total += (g0 + g1) + (g2 + g3)
        product += (g0 * x0 + g1 * x1) + (g2 * x2 + g3 * x3)
    own = partials + tl.program_id(0) * (11 * lanes) + lane
    tl.store(own, tl.sum(t0, 0), mask=within)
    tl.store(own + lanes, tl.sum(t1, 0), mask=within)
    tl.store(own + 2 * lanes, tl.sum(t2, 0), mask=within)
    tl.store(own + 3 * lanes, tl.sum(t3, 0), mask=within)
    tl.store(own + 4 * lanes, tl.sum(t4, 0), mask=within)
    tl.store(own + 5 * lanes, tl.sum(t5, 0), mask=within)
    tl.store(own + 6 * lanes, tl.sum(t6, 0), mask=within)
    tl.store(own + 7 * lanes, tl.sum(t7, 0), mask=within)
    tl.store(own + 8 * lanes, tl.sum(t8, 0), mask=within)
    tl.store(own + 9 * lanes, tl.sum(total, 0), mask=within)
    tl.store(own + 10 * lanes, tl.sum(product, 0), mask=within)
    if _last(counter, tl.program_id(1)):
        _settle_taps(
            partials, mean, var, grad_weight, grad_bias, grad_taps, lane, lanes,
            EPS, BLOCK_C, BLOCK_P, ACC,
        )  # fmt: skip


@triton.jit
def _over_parts(partials, which, lane, lanes, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
                ACC: tl.constexpr):  # fmt: skip
    found = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    parts = tl.num_programs(0)
    for start in range(0, parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        kept = (p < parts)[:, None] & (lane < lanes)[None, :]
        at = (p * 11 + which)[:, None] * lanes + lane[None, :]
        found += tl.load(partials + at, mask=kept, other=0.0, volatile=True)
    return tl.sum(found, 0)


@triton.jit
def _settle_taps(
    partials, mean, var, grad_weight, grad_bias, grad_taps, lane, lanes,
    EPS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    there = lane < lanes
    for k in range(9):
        found = _over_parts(partials, k, lane, lanes, BLOCK_C, BLOCK_P, ACC)
        tl.store(grad_taps + lane * 9 + k, found, mask=there)
    of_bias = _over_parts(partials, 9, lane, lanes, BLOCK_C, BLOCK_P, ACC)
    of_weight = _over_parts(partials, 10, lane, lanes, BLOCK_C, BLOCK_P, ACC)
    _, low, inverse, _, _ = _affine(lane, there, lanes, mean, var, None, None, EPS, ACC)
    tl.store(grad_bias + lane, of_bias, mask=there)
    tl.store(grad_weight + lane, (of_weight - low * of_bias) * inverse, mask=there)
