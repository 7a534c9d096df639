"""Kernels of the averages over RoI bins: one program computes some bins of one RoI, and some channels.

Positions are compared with the edges of the map and rounded up to numbers of samples. They are computed operation by
operation as in the reference, so these kernels are compiled without fused multiply-adds and divide with `div_rn`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pliant.ops.roi.triton.boxes import corners, finite, round_away
from pliant.ops.sampling.triton import add, multiple, positions, store, weights


@triton.jit
def side(first, last, scale, COUNTED: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the start of a box and its extent in one direction, in pixels of the map."""
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
def box(rois, r, N, scale, gamma, COUNTED: tl.constexpr, ALIGNED: tl.constexpr):
    """Return whether RoI `r` is valid, its image, and start and extent of its rows and columns."""
    valid, image, x1, y1, x2, y2 = corners(rois, r, N)
    y, height = side(y1, y2, scale, COUNTED, ALIGNED)
    x, width = side(x1, x2, scale, COUNTED, ALIGNED)
    valid = valid & finite(y) & finite(x) & finite(height) & finite(width)
    valid = valid & finite(height * gamma) & finite(width * gamma)
    y = tl.where(valid, y, 0.0)
    x = tl.where(valid, x, 0.0)
    height = tl.where(valid, height, 0.0)
    width = tl.where(valid, width, 0.0)
    return valid, image, y, height, x, width


class Samples(NamedTuple):
    """The samples of some bins along one direction.

    The origin of every bin, and how many of its samples are skipped; common to all bins, their extent, their number of
    samples, the distance of two samples, and how many are visited. A huge box has more samples than pixels: only those
    are visited that may lie in the map.
    """

    origin: Any
    skipped: Any
    bin: Any
    total: Any
    step: Any
    visits: Any


@triton.jit
def lay_out(start, size, place, bins, shift, samples, extent, COUNTED: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Return the samples of bins along one direction."""
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
    return Samples(origin, skipped, bin, total, step, visits)


@triton.jit
def find(i, line, extent, COUNTED: tl.constexpr):
    """Return the pixel of sample `i` of every bin, the next pixel, the position past the first, and two conditions.

    The first condition is whether the sample counts, the second whether it moves with the bin, which it does not where
    it was moved into the map.
    """
    if COUNTED:
        at = line.origin + i * line.step
        counts = (at >= -0.5) & (at <= extent - 0.5)
    else:
        at = line.origin + line.skipped * line.step + tl.div_rn((i + 0.5) * line.bin, tl.maximum(line.total, 1.0))
        counts = (line.skipped + i < line.total) & (at >= -1.0) & (at <= extent)
    moves = counts & (at >= 0.0) & (at < extent - 1.0)
    at = tl.where(counts, tl.minimum(tl.maximum(at, 0.0), extent - 1.0), 0.0)
    low = tl.floor(at)
    near = low.to(tl.int32)
    return near, tl.minimum(near + 1, extent - 1), at - low, counts, moves


@triton.jit
def count(line, extent, COUNTED: tl.constexpr):
    """Return the number of samples along one direction by which the average of every bin divides."""
    found = tl.zeros(line.origin.shape, tl.float32)
    if COUNTED:
        for i in range(line.visits):
            _, _, _, counts, _ = find(i, line, extent, COUNTED)
            found += counts.to(tl.float32)
    else:
        found += line.total
    return found


@triton.jit
def lay_out_bins(
    rois, offset, r, k, b,
    N, H, W, Ph, Pw, part, classes, parts, samples, scale, gamma,
    MOVED: tl.constexpr, COUNTED: tl.constexpr, ALIGNED: tl.constexpr, ADAPTIVE: tl.constexpr,
):  # fmt: skip
    """Lay out bins `b` of RoI `r`, moved by the offsets of class `k`.

    Returns: the image; which bins read it; height and width of the box; the samples in rows and columns; the number of
    samples by which the average of every bin divides.
    """
    exists = b < Ph * Pw
    ph = b // Pw
    pw = b % Pw
    valid, image, y, height, x, width = box(rois, r, N, scale, gamma, COUNTED, ALIGNED)
    dy = tl.zeros(b.shape, tl.float32)
    dx = tl.zeros(b.shape, tl.float32)
    if MOVED:
        slot = b
        if COUNTED:
            # Bins may share the offset of a part.
            slot = ph * part // Ph * part + pw * part // Pw
        moved = offset + (r * classes + k) * 2 * parts + slot
        dx = gamma * width * tl.load(moved, mask=exists, other=0.0).to(tl.float32)
        dy = gamma * height * tl.load(moved + parts, mask=exists, other=0.0).to(tl.float32)
    rows = lay_out(y, height, ph, Ph, dy, samples, H, COUNTED, ADAPTIVE)
    columns = lay_out(x, width, pw, Pw, dx, samples, W, COUNTED, ADAPTIVE)
    divisor = tl.maximum(count(rows, H, COUNTED) * count(columns, W, COUNTED), 1.0)
    return image, b < tl.where(valid, Ph * Pw, 0), height, width, rows, columns, divisor


@triton.jit
def first_channels(b, Ph, Pw, Gh, Gw, outputs):
    """Return the first of the channels in a pixel of the map that bins `b` read."""
    return (b // Pw * Gh // Ph * Gw + b % Pw * Gw // Pw) * outputs


@triton.jit
def corner_offsets(upper, lower, left, right, channel, W, C, INDEX: tl.constexpr):
    """Return the offsets in memory of two rows, which include the first channel, and of two columns: (B, 1)."""
    top = upper.to(INDEX) * W * C + channel
    bottom = lower.to(INDEX) * W * C + channel
    return top[:, None], bottom[:, None], (left.to(INDEX) * C)[:, None], (right.to(INDEX) * C)[:, None]


@triton.jit(do_not_specialize=["N", "H", "W", "samples"])
def forward(
    input, rois, offset, mask, output,
    N, H, W, Ph, Pw, Gh, Gw, part, outputs, each, classes, parts, samples, scale, gamma,
    output_n, output_c, output_p, tiles, chunks,
    MOVED: tl.constexpr, MASKED: tl.constexpr, COUNTED: tl.constexpr, ALIGNED: tl.constexpr, ADAPTIVE: tl.constexpr,
    LAST: tl.constexpr, INDEX: tl.constexpr, VECTOR: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_B bins of one RoI and BLOCK_C channels of one class."""
    outputs = multiple(outputs, VECTOR)
    each = multiple(each, VECTOR)
    C = Gh * Gw * outputs
    P = Ph * Pw
    r, b = positions(tl.program_id(0), tiles, BLOCK_B)
    k = tl.program_id(1) // chunks
    c = tl.program_id(1) % chunks * BLOCK_C
    exists = b < P
    image, reads, _height, _width, rows, columns, divisor = lay_out_bins(
        rois, offset, r, k, b, N, H, W, Ph, Pw, part, classes, parts, samples, scale, gamma,
        MOVED, COUNTED, ALIGNED, ADAPTIVE,
    )  # fmt: skip

    channel = first_channels(b, Ph, Pw, Gh, Gw, outputs)
    lane = tl.arange(0, BLOCK_C)
    some = (c + lane < each)[None, :]
    input += image * H * W * C + k * each + c
    sums = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for i in range(rows.visits):
        upper, lower, fy, counts_y, _ = find(i, rows, H, COUNTED)
        for j in range(columns.visits):
            left, right, fx, counts_x, _ = find(j, columns, W, COUNTED)
            keep = (reads & counts_y & counts_x)[:, None] & some
            w0, w1, w2, w3 = weights(fy, fx, 1.0)
            top, bottom, near, far = corner_offsets(upper, lower, left, right, channel, W, C, INDEX)
            sums += w0[:, None] * tl.load(input + top + near + lane[None, :], mask=keep, other=0.0).to(tl.float32)
            sums += w1[:, None] * tl.load(input + top + far + lane[None, :], mask=keep, other=0.0).to(tl.float32)
            sums += w2[:, None] * tl.load(input + bottom + near + lane[None, :], mask=keep, other=0.0).to(tl.float32)
            sums += w3[:, None] * tl.load(input + bottom + far + lane[None, :], mask=keep, other=0.0).to(tl.float32)
    sums = sums / divisor[:, None]
    if MASKED:
        sums *= tl.load(mask + r * P + b, mask=exists, other=0.0).to(tl.float32)[:, None]
    at = (k * each + c + lane)[None, :] * output_c + b[:, None] * output_p
    store(output + r * output_n, at, sums, exists[:, None] & some, LAST)


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

    With WANT_SUMS these are all channels of the class, so that one program sums the gradients of a bin's mask and its
    two offsets. The input's gradient is added atomically, with FIXED as integers in units of 1/unit (see `Sums`).
    """
    outputs = multiple(outputs, VECTOR)
    each = multiple(each, VECTOR)
    C = Gh * Gw * outputs
    P = Ph * Pw
    r, b = positions(tl.program_id(0), tiles, BLOCK_B)
    k = tl.program_id(1) // chunks
    first = tl.program_id(1) % chunks * span
    exists = b < P
    image, reads, height, width, rows, columns, divisor = lay_out_bins(
        rois, offset, r, k, b, N, H, W, Ph, Pw, part, classes, parts, samples, scale, gamma,
        MOVED, COUNTED, ALIGNED, ADAPTIVE,
    )  # fmt: skip
    share = 1.0 / divisor
    m = share
    if MASKED:
        m *= tl.load(mask + r * P + b, mask=exists, other=0.0).to(tl.float32)

    channel = first_channels(b, Ph, Pw, Gh, Gw, outputs)
    lane = tl.arange(0, BLOCK_C)
    # The average, and its change per pixel by which the bin is moved, times the gradient.
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
        for i in range(rows.visits):
            upper, lower, fy, counts_y, moves_y = find(i, rows, H, COUNTED)
            for j in range(columns.visits):
                left, right, fx, counts_x, moves_x = find(j, columns, W, COUNTED)
                keep = (reads & counts_y & counts_x)[:, None] & some
                w0, w1, w2, w3 = weights(fy, fx, 1.0)
                top, bottom, near, far = corner_offsets(upper, lower, left, right, channel, W, C, INDEX)
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
