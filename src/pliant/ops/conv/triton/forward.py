"""Forward kernels: gather a tile of columns, multiply it with the weights at once; no column buffer."""

from __future__ import annotations

import triton
import triton.language as tl

from pliant.ops.conv.triton.taps import MAPS, locate_taps
from pliant.ops.sampling.triton import inside, steps, tile_positions, weights


@triton.jit
def gather(
    input, top, left, fy, fx, counts, m, lanes, some, H, W, C,
    CLAMP: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Return the blended samples (positions, taps, channels) of some of the channels `lanes`; the others are 0."""
    w0, w1, w2, w3 = weights(fy, fx, m)
    in0, in1, in2, in3 = inside(top, left, counts, H, W, CLAMP)
    down, right = steps(top, left, H, W, CLAMP)
    down = (down.to(INDEX) * W * C)[:, :, None]
    right = (right * C)[:, :, None]
    lanes = lanes[None, None, :]
    some = some[None, None, :]
    # Pointers to pixels first, then lanes: what is constant in a thread becomes part of its instructions.
    at = input + ((top.to(INDEX) * W + left) * C)[:, :, None]
    x = w0[:, :, None] * tl.load(at + lanes, mask=in0[:, :, None] & some, other=0.0).to(tl.float32)
    x += w1[:, :, None] * tl.load(at + right + lanes, mask=in1[:, :, None] & some, other=0.0).to(tl.float32)
    at += down
    x += w2[:, :, None] * tl.load(at + lanes, mask=in2[:, :, None] & some, other=0.0).to(tl.float32)
    x += w3[:, :, None] * tl.load(at + right + lanes, mask=in3[:, :, None] & some, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=MAPS)
def forward(
    input, offset, mask, weight, bias, output,
    H, W, C, Ho, Wo, Og, Cg, Cj, segment, K, Kw, sh, sw, ph, pw, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, output_s, output_n, output_o, output_p,
    tiles, blocks, share,
    MASKED: tl.constexpr, BIASED: tl.constexpr, CLAMP: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr,
    VECTOR: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_P positions of BLOCK_O outputs of one convolution group, or one share of their sums."""
    # The compiler is to know what VECTOR divides: it loads that many channels at once.
    C = C // VECTOR * VECTOR
    Cg = Cg // VECTOR * VECTOR
    segment = segment // VECTOR * VECTOR
    n = (tl.program_id(0) // tiles).to(tl.int64)
    ho, wo, exists = tile_positions(tl.program_id(0) % tiles, Ho, Wo, BLOCK_P)
    group = tl.program_id(1) // blocks
    o = tl.program_id(1) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    input += n * H * W * C
    offset += n * offset_n
    mask += n * mask_n
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
        top, left, fy, fx, counts, m = locate_taps(
            offset, mask, ho[:, None], wo[:, None], exists[:, None], j, t0 + tl.arange(0, TAPS)[None, :],
            H, W, Wo, K, Kw, sh, sw, ph, pw, dh, dw,
            offset_c, offset_p, mask_c, mask_p, MASKED, CLAMP, INDEX,
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
            x = gather(
                input + (group * Cg + c0 + c), top, left, fy, fx, counts, m, lane, c + lane < segment, H, W, C,
                CLAMP, INDEX,
            )  # fmt: skip
            columns = tl.reshape(x.to(w.dtype), (BLOCK_P, TAPS * BLOCK_C))
            sums = tl.dot(columns, w, sums, input_precision=PRECISION)
    if BIASED:
        sums += tl.load(bias + group * Og + o, mask=o < Og, other=0.0).to(tl.float32)[None, :]
    p = ho.to(INDEX) * Wo + wo
    output += tl.program_id(2).to(tl.int64) * output_s + n * output_n
    result = sums.to(output.dtype.element_ty)
    keep = exists[:, None] & (o < Og)[None, :]
    at = p[:, None] * output_p + (group * Og + o).to(INDEX)[None, :] * output_o
    if LAST:
        tl.store(output + at, result, mask=keep)
    else:
        # Neighbouring lanes store neighbouring positions.
        tl.store(output + tl.trans(at), tl.trans(result), mask=tl.trans(keep))


@triton.jit(do_not_specialize=["P", "count"])
def combine(
    shares, bias, output,
    O, P,
    count,
    shares_s, output_n, output_o, output_p,
    BIASED: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Add the `count` shares of the sums, each (N, P, O) in float32, in order; add the bias, round."""
    tiles = tl.cdiv(P, BLOCK_P)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    keep = (p < P)[:, None] & (o < O)[None, :]
    at = shares + n * P * O + (p.to(INDEX)[:, None] * O + o[None, :])
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for _ in range(count):
        sums += tl.load(at, mask=keep, other=0.0)
        at += shares_s
    if BIASED:
        sums += tl.load(bias + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
    result = sums.to(output.dtype.element_ty)
    to = output + n * output_n
    at = p.to(INDEX)[:, None] * output_p + o.to(INDEX)[None, :] * output_o
    if LAST:
        tl.store(to + at, result, mask=keep)
    else:
        tl.store(to + tl.trans(at), tl.trans(result), mask=tl.trans(keep))


@triton.jit(do_not_specialize=MAPS)
def forward_depthwise(
    input, offset, mask, weight, bias, output,
    H, W, C, Ho, Wo, Cj, K, Kw, sh, sw, ph, pw, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, output_n, output_o, output_p,
    tiles, blocks,
    MASKED: tl.constexpr, BIASED: tl.constexpr, CLAMP: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr,
    VECTOR: tl.constexpr, MULTIPLIER: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_P positions of BLOCK_O outputs of one offset group, where every output reads one channel."""
    C = C // VECTOR * VECTOR
    Cj = Cj // VECTOR * VECTOR
    n = (tl.program_id(0) // tiles).to(tl.int64)
    ho, wo, exists = tile_positions(tl.program_id(0) % tiles, Ho, Wo, BLOCK_P)
    j = tl.program_id(1) // blocks
    o = tl.program_id(1) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    some = o < Cj * MULTIPLIER
    c = o // MULTIPLIER
    o += j * Cj * MULTIPLIER
    input += n * H * W * C
    offset += n * offset_n
    mask += n * mask_n
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for t in range(K):
        top, left, fy, fx, counts, m = locate_taps(
            offset, mask, ho[:, None], wo[:, None], exists[:, None], j, t + tl.arange(0, 1)[None, :],
            H, W, Wo, K, Kw, sh, sw, ph, pw, dh, dw,
            offset_c, offset_p, mask_c, mask_p, MASKED, CLAMP, INDEX,
        )  # fmt: skip
        x = gather(input + j * Cj, top, left, fy, fx, counts, m, c, some, H, W, C, CLAMP, INDEX)
        w = tl.load(weight + (o.to(INDEX) * K + t), mask=some, other=0.0).to(tl.float32)
        sums += tl.reshape(x, (BLOCK_P, BLOCK_O)) * w[None, :]
    if BIASED:
        sums += tl.load(bias + o, mask=some, other=0.0).to(tl.float32)[None, :]
    p = ho.to(INDEX) * Wo + wo
    result = sums.to(output.dtype.element_ty)
    keep = exists[:, None] & some[None, :]
    output += n * output_n
    at = p[:, None] * output_p + o.to(INDEX)[None, :] * output_o
    if LAST:
        tl.store(output + at, result, mask=keep)
    else:
        tl.store(output + tl.trans(at), tl.trans(result), mask=tl.trans(keep))
