"""Forward kernels: they gather a tile of columns and multiply it with the weights at once, without a column buffer."""

from __future__ import annotations

import triton
import triton.language as tl

from pliant.ops.conv.triton.taps import MAPS, locate_taps, planes
from pliant.ops.sampling.triton import addresses, inside, multiple, positions, store, tile_positions, weights


@triton.jit
def gather(
    input, top, left, fy, fx, counts, m, lanes, some, H, W, C,
    CLAMP: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Return the samples (positions, taps, channels) of the channels `lanes`, 0 except for `some` of them."""
    w0, w1, w2, w3 = weights(fy, fx, m)
    in0, in1, in2, in3 = inside(top, left, counts, H, W, CLAMP)
    pixel, down, right = addresses(top, left, H, W, C, CLAMP, INDEX)
    lanes = lanes[None, None, :]
    some = some[None, None, :]
    # Pointers to pixels first, then lanes: what is constant in a thread becomes part of its instructions.
    at = input + pixel
    x = w0[:, :, None] * tl.load(at + lanes, mask=in0[:, :, None] & some, other=0.0).to(tl.float32)
    x += w1[:, :, None] * tl.load(at + right + lanes, mask=in1[:, :, None] & some, other=0.0).to(tl.float32)
    at += down
    x += w2[:, :, None] * tl.load(at + lanes, mask=in2[:, :, None] & some, other=0.0).to(tl.float32)
    x += w3[:, :, None] * tl.load(at + right + lanes, mask=in3[:, :, None] & some, other=0.0).to(tl.float32)
    return x


@triton.jit
def sample(
    input, top, left, fy, fx, counts, m, near, fz, lanes, some, D, H, W, C,
    CLAMP: tl.constexpr, INDEX: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    """Return the samples (positions, taps, channels), in a volume from both planes."""
    if AXES == 3:
        before, behind, in_near, in_far = planes(near, D, H * W * C, CLAMP, INDEX)
        x = gather(
            input + before, top, left, fy, fx, counts & in_near, m * (1.0 - fz), lanes, some, H, W, C, CLAMP, INDEX
        )
        x += gather(input + behind, top, left, fy, fx, counts & in_far, m * fz, lanes, some, H, W, C, CLAMP, INDEX)
    else:
        x = gather(input, top, left, fy, fx, counts, m, lanes, some, H, W, C, CLAMP, INDEX)
    return x


@triton.jit(do_not_specialize=MAPS)
def forward(
    input, offset, mask, weight, bias, output,
    D, H, W, C, Ho, Hr, Wo, Og, Cg, Cj, segment, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, output_s, output_n, output_c, output_p,
    tiles, blocks, share,
    MASKED: tl.constexpr, BIASED: tl.constexpr, CLAMP: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr,
    AXES: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_P positions of BLOCK_O outputs of one convolution group, or one share of their sums."""
    C = multiple(C, VECTOR)
    Cg = multiple(Cg, VECTOR)
    segment = multiple(segment, VECTOR)
    n, ho, wo, exists = tile_positions(tl.program_id(0), tiles, Ho, Wo, BLOCK_P)
    group = tl.program_id(1) // blocks
    o = tl.program_id(1) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    input += n * D * H * W * C
    weight += group.to(INDEX) * Og * K * Cg
    taps = tl.cdiv(K, TAPS)
    lanes = tl.arange(0, TAPS * BLOCK_C)
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    first = tl.program_id(2) * share
    # Channels in segments of one offset group each, and taps, in one loop.
    for step in range(first, tl.minimum(first + share, Cg // segment * taps)):
        c0 = step // taps * segment
        t0 = step % taps * TAPS
        j = (group * Cg + c0) // Cj
        top, left, fy, fx, counts, m, near, fz = locate_taps(
            offset, mask, n, ho, wo, exists, j, t0,
            D, H, W, Hr, Wo, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
            offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, MASKED, CLAMP, INDEX, AXES, TAPS,
        )  # fmt: skip
        for c in range(0, segment, BLOCK_C):
            t = t0 + lanes // BLOCK_C
            k = c + lanes % BLOCK_C
            w = tl.load(
                weight + ((t * Cg + c0 + k)[:, None] + o.to(INDEX)[None, :] * (K * Cg)),
                mask=((t < K) & (k < segment))[:, None] & (o < Og)[None, :],
                other=0.0,
            )
            lane = tl.arange(0, BLOCK_C)
            x = sample(
                input + (group * Cg + c0 + c), top, left, fy, fx, counts, m, near, fz, lane, c + lane < segment,
                D, H, W, C, CLAMP, INDEX, AXES,
            )  # fmt: skip
            columns = tl.reshape(x.to(w.dtype), (BLOCK_P, TAPS * BLOCK_C))
            sums = tl.dot(columns, w, sums, input_precision=PRECISION)
    if BIASED:
        sums += tl.load(bias + group * Og + o, mask=o < Og, other=0.0).to(tl.float32)[None, :]
    p = ho.to(INDEX) * Wo + wo
    output += tl.program_id(2).to(tl.int64) * output_s + n * output_n
    at = p[:, None] * output_p + (group * Og + o).to(INDEX)[None, :] * output_c
    store(output, at, sums, exists[:, None] & (o < Og)[None, :], LAST)


@triton.jit(do_not_specialize=["P", "count"])
def combine(
    shares, bias, output,
    O, P, count,
    shares_s, output_n, output_c, output_p,
    BIASED: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Add the `count` shares of the sums, each (N, P, O) in float32, in order; add the bias, round."""
    n, p = positions(tl.program_id(0), tl.cdiv(P, BLOCK_P), BLOCK_P)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    keep = (p < P)[:, None] & (o < O)[None, :]
    at = shares + n * P * O + (p.to(INDEX)[:, None] * O + o[None, :])
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for _ in range(count):
        sums += tl.load(at, mask=keep, other=0.0)
        at += shares_s
    if BIASED:
        sums += tl.load(bias + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
    at = p.to(INDEX)[:, None] * output_p + o.to(INDEX)[None, :] * output_c
    store(output + n * output_n, at, sums, keep, LAST)


@triton.jit
def depthwise_outputs(block, j, Cj, MULTIPLIER: tl.constexpr, BLOCK_O: tl.constexpr):
    """Return the outputs of a block of offset group `j`, the channel that each reads in the group, and which exist."""
    o = block * BLOCK_O + tl.arange(0, BLOCK_O)
    return o + j * Cj * MULTIPLIER, o // MULTIPLIER, o < Cj * MULTIPLIER


@triton.jit(do_not_specialize=MAPS)
def forward_depthwise(
    input, offset, mask, weight, bias, output,
    D, H, W, C, Ho, Hr, Wo, Cj, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, output_n, output_c, output_p,
    tiles, blocks,
    MASKED: tl.constexpr, BIASED: tl.constexpr, CLAMP: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr,
    AXES: tl.constexpr, VECTOR: tl.constexpr, MULTIPLIER: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_P positions of BLOCK_O outputs of one offset group, where every output reads one channel."""
    C = multiple(C, VECTOR)
    Cj = multiple(Cj, VECTOR)
    n, ho, wo, exists = tile_positions(tl.program_id(0), tiles, Ho, Wo, BLOCK_P)
    j = tl.program_id(1) // blocks
    o, c, some = depthwise_outputs(tl.program_id(1) % blocks, j, Cj, MULTIPLIER, BLOCK_O)
    input += n * D * H * W * C
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for t in range(K):
        top, left, fy, fx, counts, m, near, fz = locate_taps(
            offset, mask, n, ho, wo, exists, j, t,
            D, H, W, Hr, Wo, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
            offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, MASKED, CLAMP, INDEX, AXES, 1,
        )  # fmt: skip
        x = sample(
            input + j * Cj, top, left, fy, fx, counts, m, near, fz, c, some, D, H, W, C, CLAMP, INDEX, AXES,
        )  # fmt: skip
        w = tl.load(weight + (o.to(INDEX) * K + t), mask=some, other=0.0).to(tl.float32)
        sums += tl.reshape(x, (BLOCK_P, BLOCK_O)) * w[None, :]
    if BIASED:
        sums += tl.load(bias + o, mask=some, other=0.0).to(tl.float32)[None, :]
    p = ho.to(INDEX) * Wo + wo
    at = p[:, None] * output_p + o.to(INDEX)[None, :] * output_c
    store(output + n * output_n, at, sums, exists[:, None] & some[None, :], LAST)
