"""Kernels of the averages over RoI bins, forward and backward: a program has some bins of one RoI, some channels.

Positions are compared with the edges of the map and rounded up to numbers of samples: they are computed operation by
operation as the reference does, so these kernels are compiled without fused multiply-adds, and divide with `div_rn`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pliant.ops.sampling.triton import add, weights


@triton.jit
def round_away(x):
    """Round half away from zero, as C does."""
    whole = tl.where(x < 0.0, tl.ceil(x), tl.floor(x))
    return whole + tl.where(tl.abs(x - whole) >= 0.5, tl.where(x < 0.0, -1.0, 1.0), 0.0)


@triton.jit
def side(first, last, scale, COUNTED: tl.constexpr, ALIGNED: tl.constexpr):
    """Return where a box begins along one direction, and its extent there, in pixels of the map."""
    if COUNTED:
        start = round_away(first) * scale - 0.5
        size = tl.maximum((round_away(last) + 1.0) * scale - 0.5 - start, 0.1)
    elif ALIGNED:
        start = first * scale - 0.5
        size = last * scale - 0.5 - start
    else:
        start = first * scale
        size = tl.maximum(last * scale - start, 1.0)
    return start, size


@triton.jit
def finite(x):
    """Return False for NaN too."""
    return tl.abs(x) < float("inf")


@triton.jit
def corners(rois, r, N):
    """Return whether RoI `r` may read anything, its image, and its corners."""
    at = rois + r * 5
    image = tl.load(at).to(tl.float32)
    x1 = tl.load(at + 1).to(tl.float32)
    y1 = tl.load(at + 2).to(tl.float32)
    x2 = tl.load(at + 3).to(tl.float32)
    y2 = tl.load(at + 4).to(tl.float32)
    alive = (image >= 0.0) & (image < N) & finite(x1) & finite(y1) & finite(x2) & finite(y2)
    image = tl.where(alive, image, 0.0).to(tl.int64)
    x1 = tl.where(alive, x1, 0.0)
    y1 = tl.where(alive, y1, 0.0)
    x2 = tl.where(alive, x2, 0.0)
    y2 = tl.where(alive, y2, 0.0)
    return alive, image, x1, y1, x2, y2


@triton.jit
def box(rois, r, N, scale, gamma, COUNTED: tl.constexpr, ALIGNED: tl.constexpr):
    """Return whether RoI `r` reads anything, its image, and start and extent of its rows and columns."""
    alive, image, x1, y1, x2, y2 = corners(rois, r, N)
    y, height = side(y1, y2, scale, COUNTED, ALIGNED)
    x, width = side(x1, x2, scale, COUNTED, ALIGNED)
    alive = alive & finite(y) & finite(x) & finite(height) & finite(width)
    alive = alive & finite(height * gamma) & finite(width * gamma)
    y = tl.where(alive, y, 0.0)
    x = tl.where(alive, x, 0.0)
    height = tl.where(alive, height, 0.0)
    width = tl.where(alive, width, 0.0)
    return alive, image, y, height, x, width


@triton.jit
def lay_out(start, size, place, bins, shift, samples, extent, COUNTED: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Lay out the samples of bins along one direction.

    Returns: the origin of every bin, how many of its samples are skipped; of all bins the extent, the samples, the
    step between two, and how many are visited. A huge box has more samples than pixels, visited are those that may lie
    in the map.
    """
    bin = tl.div_rn(size, bins * 1.0)
    origin = start + place.to(tl.float32) * bin + shift
    skipped = tl.zeros(origin.shape, tl.float32)
    if ADAPTIVE:
        total = tl.maximum(tl.ceil(bin), 0.0)
        step = tl.div_rn(bin, tl.maximum(total, 1.0))
        skipped = tl.minimum(tl.maximum(tl.floor(tl.div_rn(-1.0 - origin, step)) - 1.0, 0.0), total)
        visits = tl.minimum(total, tl.ceil(tl.div_rn(extent + 1.0, step)) + 4.0).to(tl.int32)
    else:
        total = samples * 1.0
        step = tl.div_rn(bin, total)
        visits = samples
    return origin, skipped, bin, total, step, visits


@triton.jit
def find(i, origin, skipped, bin, total, step, extent, COUNTED: tl.constexpr):
    """Return of sample `i` of every bin: its pixel, the next one, its position past the first, and two conditions.

    The first is whether it counts, the second whether it moves with the bin: not where it was moved into the map.
    """
    if COUNTED:
        at = origin + i * step
        counts = (at >= -0.5) & (at <= extent - 0.5)
    else:
        at = origin + skipped * step + tl.div_rn((i + 0.5) * bin, tl.maximum(total, 1.0))
        counts = (skipped + i < total) & (at >= -1.0) & (at <= extent)
    moves = counts & (at >= 0.0) & (at < extent - 1.0)
    at = tl.where(counts, tl.minimum(tl.maximum(at, 0.0), extent - 1.0), 0.0)
    low = tl.floor(at)
    near = low.to(tl.int32)
    return near, tl.minimum(near + 1, extent - 1), at - low, counts, moves


@triton.jit
def count(origin, skipped, bin, total, step, visits, extent, COUNTED: tl.constexpr):
    """Return by how many samples along one direction the average of every bin divides."""
    found = tl.zeros(origin.shape, tl.float32)
    if COUNTED:
        for i in range(visits):
            _, _, _, counts, _ = find(i, origin, skipped, bin, total, step, extent, COUNTED)
            found += counts.to(tl.float32)
    else:
        found += total
    return found


@triton.jit(do_not_specialize=["N", "H", "W", "samples"])
def forward(
    input, rois, offset, mask, output,
    N, H, W, Ph, Pw, Gh, Gw, part, outputs, each, classes, parts, samples, scale, gamma,
    output_r, output_c, output_b, tiles, chunks,
    MOVED: tl.constexpr, MASKED: tl.constexpr, COUNTED: tl.constexpr, ALIGNED: tl.constexpr, ADAPTIVE: tl.constexpr,
    LAST: tl.constexpr, INDEX: tl.constexpr, VECTOR: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_B bins of one RoI and BLOCK_C channels of one class."""
    # The compiler is to know what VECTOR divides: it loads that many channels at once.
    outputs = outputs // VECTOR * VECTOR
    each = each // VECTOR * VECTOR
    C = Gh * Gw * outputs
    r = (tl.program_id(0) // tiles).to(tl.int64)
    b = tl.program_id(0) % tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    k = tl.program_id(1) // chunks
    c = tl.program_id(1) % chunks * BLOCK_C
    exists = b < Ph * Pw
    ph = b // Pw
    pw = b % Pw
    alive, image, y, height, x, width = box(rois, r, N, scale, gamma, COUNTED, ALIGNED)
    dy = tl.zeros((BLOCK_B,), tl.float32)
    dx = tl.zeros((BLOCK_B,), tl.float32)
    if MOVED:
        slot = b
        if COUNTED:
            # Offsets of parts, which bins may share.
            slot = ph * part // Ph * part + pw * part // Pw
        moved = offset + (r * classes + k) * 2 * parts + slot
        dx = gamma * width * tl.load(moved, mask=exists, other=0.0).to(tl.float32)
        dy = gamma * height * tl.load(moved + parts, mask=exists, other=0.0).to(tl.float32)
    oy, sy, by, ty, dty, vy = lay_out(y, height, ph, Ph, dy, samples, H, COUNTED, ADAPTIVE)
    ox, sx, bx, tx, dtx, vx = lay_out(x, width, pw, Pw, dx, samples, W, COUNTED, ADAPTIVE)
    samples_y = count(oy, sy, by, ty, dty, vy, H, COUNTED)
    samples_x = count(ox, sx, bx, tx, dtx, vx, W, COUNTED)

    turn = ph * Gh // Ph * Gw + pw * Gw // Pw
    lane = tl.arange(0, BLOCK_C)
    some = (c + lane < each)[None, :]
    input += image * H * W * C + k * each + c
    reads = b < tl.where(alive, Ph * Pw, 0)
    sums = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for i in range(vy):
        upper, lower, fy, counts_y, _ = find(i, oy, sy, by, ty, dty, H, COUNTED)
        for j in range(vx):
            left, right, fx, counts_x, _ = find(j, ox, sx, bx, tx, dtx, W, COUNTED)
            keep = (reads & counts_y & counts_x)[:, None] & some
            w0, w1, w2, w3 = weights(fy, fx, 1.0)
            top = input + (upper.to(INDEX) * W * C + turn * outputs)[:, None]
            bottom = input + (lower.to(INDEX) * W * C + turn * outputs)[:, None]
            near = (left.to(INDEX) * C)[:, None]
            far = (right.to(INDEX) * C)[:, None]
            sums += w0[:, None] * tl.load(top + near + lane[None, :], mask=keep, other=0.0).to(tl.float32)
            sums += w1[:, None] * tl.load(top + far + lane[None, :], mask=keep, other=0.0).to(tl.float32)
            sums += w2[:, None] * tl.load(bottom + near + lane[None, :], mask=keep, other=0.0).to(tl.float32)
            sums += w3[:, None] * tl.load(bottom + far + lane[None, :], mask=keep, other=0.0).to(tl.float32)
    sums = sums / tl.maximum(samples_y * samples_x, 1.0)[:, None]
    if MASKED:
        sums *= tl.load(mask + r * Ph * Pw + b, mask=exists, other=0.0).to(tl.float32)[:, None]
    at = (k * each + c + lane)[None, :] * output_c + b[:, None] * output_b
    result = sums.to(output.dtype.element_ty)
    keep = exists[:, None] & some
    if LAST:
        tl.store(output + r * output_r + at, result, mask=keep)
    else:
        # Neighbouring lanes store neighbouring bins.
        tl.store(output + r * output_r + tl.trans(at), tl.trans(result), mask=tl.trans(keep))


@triton.jit(do_not_specialize=["N", "H", "W", "samples"])
def backward(
    grad, input, rois, offset, mask, grad_input, grad_offset, grad_mask, unit,
    N, H, W, Ph, Pw, Gh, Gw, part, outputs, each, classes, parts, samples, scale, gamma,
    tiles, chunks, span,
    MOVED: tl.constexpr, MASKED: tl.constexpr, COUNTED: tl.constexpr, ALIGNED: tl.constexpr, ADAPTIVE: tl.constexpr,
    WANT_INPUT: tl.constexpr, FIXED: tl.constexpr, WANT_SUMS: tl.constexpr,
    INDEX: tl.constexpr, VECTOR: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of BLOCK_B bins of one RoI, for `span` channels of one class, BLOCK_C at a time.

    With WANT_SUMS these are all channels of the class: what a bin's mask and its two offsets get is a sum of its own.
    The input's gradient is added atomically, with FIXED as integers in units of 1/unit.
    """
    outputs = outputs // VECTOR * VECTOR
    each = each // VECTOR * VECTOR
    C = Gh * Gw * outputs
    P = Ph * Pw
    r = (tl.program_id(0) // tiles).to(tl.int64)
    b = tl.program_id(0) % tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    k = tl.program_id(1) // chunks
    first = tl.program_id(1) % chunks * span
    exists = b < P
    ph = b // Pw
    pw = b % Pw
    alive, image, y, height, x, width = box(rois, r, N, scale, gamma, COUNTED, ALIGNED)
    dy = tl.zeros((BLOCK_B,), tl.float32)
    dx = tl.zeros((BLOCK_B,), tl.float32)
    if MOVED:
        slot = b
        if COUNTED:
            # Offsets of parts, which bins may share.
            slot = ph * part // Ph * part + pw * part // Pw
        moved = offset + (r * classes + k) * 2 * parts + slot
        dx = gamma * width * tl.load(moved, mask=exists, other=0.0).to(tl.float32)
        dy = gamma * height * tl.load(moved + parts, mask=exists, other=0.0).to(tl.float32)
    oy, sy, by, ty, dty, vy = lay_out(y, height, ph, Ph, dy, samples, H, COUNTED, ADAPTIVE)
    ox, sx, bx, tx, dtx, vx = lay_out(x, width, pw, Pw, dx, samples, W, COUNTED, ADAPTIVE)
    samples_y = count(oy, sy, by, ty, dty, vy, H, COUNTED)
    samples_x = count(ox, sx, bx, tx, dtx, vx, W, COUNTED)
    share = 1.0 / tl.maximum(samples_y * samples_x, 1.0)
    m = share
    if MASKED:
        m *= tl.load(mask + r * P + b, mask=exists, other=0.0).to(tl.float32)

    turn = ph * Gh // Ph * Gw + pw * Gw // Pw
    lane = tl.arange(0, BLOCK_C)
    reads = b < tl.where(alive, Ph * Pw, 0)
    # The average, and what a move of the bin by a pixel makes of it, times the gradient.
    value = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    down = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    across = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for c in range(first, tl.minimum(first + span, each), BLOCK_C):
        some = (c + lane < each)[None, :]
        at = image * H * W * C + k * each + c
        g = tl.load(
            grad + (r * P * outputs + k * each + c) + b[:, None] * outputs + lane[None, :],
            mask=exists[:, None] & some,
            other=0.0,
        ).to(tl.float32)
        spread = g
        if FIXED:
            spread = g * tl.load(unit)
        for i in range(vy):
            upper, lower, fy, counts_y, moves_y = find(i, oy, sy, by, ty, dty, H, COUNTED)
            for j in range(vx):
                left, right, fx, counts_x, moves_x = find(j, ox, sx, bx, tx, dtx, W, COUNTED)
                keep = (reads & counts_y & counts_x)[:, None] & some
                w0, w1, w2, w3 = weights(fy, fx, 1.0)
                top = (upper.to(INDEX) * W * C + turn * outputs)[:, None]
                bottom = (lower.to(INDEX) * W * C + turn * outputs)[:, None]
                near = (left.to(INDEX) * C)[:, None]
                far = (right.to(INDEX) * C)[:, None]
                if WANT_SUMS:
                    fro = input + at
                    x0 = tl.load(fro + top + near + lane[None, :], mask=keep, other=0.0).to(tl.float32)
                    x1 = tl.load(fro + top + far + lane[None, :], mask=keep, other=0.0).to(tl.float32)
                    x2 = tl.load(fro + bottom + near + lane[None, :], mask=keep, other=0.0).to(tl.float32)
                    x3 = tl.load(fro + bottom + far + lane[None, :], mask=keep, other=0.0).to(tl.float32)
                    value += g * (w0[:, None] * x0 + w1[:, None] * x1 + w2[:, None] * x2 + w3[:, None] * x3)
                    slope = (1.0 - fx)[:, None] * (x2 - x0) + fx[:, None] * (x3 - x1)
                    down += tl.where(moves_y[:, None], g * slope, 0.0)
                    slope = (1.0 - fy)[:, None] * (x1 - x0) + fy[:, None] * (x3 - x2)
                    across += tl.where(moves_x[:, None], g * slope, 0.0)
                if WANT_INPUT:
                    to = grad_input + at
                    add(to + top + near + lane[None, :], spread * (m * w0)[:, None], keep)
                    add(to + top + far + lane[None, :], spread * (m * w1)[:, None], keep)
                    add(to + bottom + near + lane[None, :], spread * (m * w2)[:, None], keep)
                    add(to + bottom + far + lane[None, :], spread * (m * w3)[:, None], keep)
    if WANT_SUMS:
        row = r * classes + k
        tl.store(grad_mask + row * P + b, share * tl.sum(value, 1), mask=exists)
        tl.store(grad_offset + row * 2 * P + b, gamma * width * m * tl.sum(across, 1), mask=exists)
        tl.store(grad_offset + row * 2 * P + P + b, gamma * height * m * tl.sum(down, 1), mask=exists)
