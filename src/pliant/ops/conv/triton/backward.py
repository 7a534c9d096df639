"""Backward kernels, which gather again: gradients of what was sampled (input, offset, mask), and of the weight."""

from __future__ import annotations

import triton
import triton.language as tl

from pliant.ops.conv.triton.forward import depthwise_outputs, sample
from pliant.ops.conv.triton.taps import MAPS, locate_taps, planes
from pliant.ops.sampling.triton import add, addresses, inside, multiple, tile_positions, weights


@triton.jit
def corner_dots(product, at, down, right, lane, some, in0, in1, in2, in3):
    """Return the dot products of the gradients of samples with their four corners in a plane, over the channels."""
    # Pointers to pixels first, then lanes: what is constant in a thread becomes part of its instructions.
    x = tl.load(at + lane, mask=in0[:, :, None] & some, other=0.0).to(tl.float32)
    dot0 = tl.sum(product * x, 2)
    x = tl.load(at + right + lane, mask=in1[:, :, None] & some, other=0.0).to(tl.float32)
    dot1 = tl.sum(product * x, 2)
    at += down
    x = tl.load(at + lane, mask=in2[:, :, None] & some, other=0.0).to(tl.float32)
    dot2 = tl.sum(product * x, 2)
    x = tl.load(at + right + lane, mask=in3[:, :, None] & some, other=0.0).to(tl.float32)
    dot3 = tl.sum(product * x, 2)
    return dot0, dot1, dot2, dot3


@triton.jit
def corner_sums(product, to, down, right, lane, some, fy, fx, m, in0, in1, in2, in3):
    """Add the gradients of samples to their four corners in a plane."""
    w0, w1, w2, w3 = weights(fy, fx, m)
    add(to + lane, product * w0[:, :, None], in0[:, :, None] & some)
    add(to + right + lane, product * w1[:, :, None], in1[:, :, None] & some)
    to += down
    add(to + lane, product * w2[:, :, None], in2[:, :, None] & some)
    add(to + right + lane, product * w3[:, :, None], in3[:, :, None] & some)


@triton.jit(do_not_specialize=MAPS)
def backward_samples(
    grad, input, offset, mask, weight, grad_input, grad_offset, grad_mask, scale,
    N, D, H, W, C, O, Ho, Hr, Wo, Og, Cg, Cj, segment, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p,
    tiles,
    MASKED: tl.constexpr, CLAMP: tl.constexpr, INDEX: tl.constexpr, AXES: tl.constexpr, VECTOR: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    WANT_INPUT: tl.constexpr, FIXED: tl.constexpr, WANT_OFFSET: tl.constexpr, WANT_MASK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the samples of BLOCK_P positions at TAPS taps, for all channels of one offset group.

    One program sees every channel that an offset moves or a mask value scales, so it sums their gradients alone. The
    input's gradient is added atomically, as float32, or with FIXED as integers in units of 1/scale (see `Sums`).
    MULTIPLIER is the number of outputs per channel where the convolution is depthwise, else 0.
    """
    C = multiple(C, VECTOR)
    Cj = multiple(Cj, VECTOR)
    segment = multiple(segment, VECTOR)
    # The first dimension of the grid holds 2³¹ programs, the others 2¹⁶: too few for offset groups times taps.
    row = tl.program_id(0) // (N * tiles)
    n, ho, wo, exists = tile_positions(tl.program_id(0) % (N * tiles), tiles, Ho, Wo, BLOCK_P)
    p = ho.to(INDEX) * Wo + wo
    taps = tl.cdiv(K, TAPS)
    j = row // taps
    t0 = row % taps * TAPS
    t = t0 + tl.arange(0, TAPS)
    lanes = tl.arange(0, TAPS * BLOCK_C)
    lane_t = t0 + lanes // BLOCK_C
    top, left, fy, fx, counts, m, near, fz = locate_taps(
        offset, mask, n, ho, wo, exists, j, t0,
        D, H, W, Hr, Wo, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
        offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, MASKED, CLAMP, INDEX, AXES, TAPS,
    )  # fmt: skip
    pixel, down, right = addresses(top, left, H, W, C, CLAMP, INDEX)
    # In a volume what follows is the near plane's; the far plane's share comes after it.
    share = m
    counts_near = counts
    if AXES == 3:
        before, behind, in_near, in_far = planes(near, D, H * W * C, CLAMP, INDEX)
        counts_near = counts & in_near
        share = m * (1.0 - fz)
        far_share = m * fz
        far0, far1, far2, far3 = inside(top, left, counts & in_far, H, W, CLAMP)
        far_pixel = pixel + behind
        pixel += before
    in0, in1, in2, in3 = inside(top, left, counts_near, H, W, CLAMP)
    input += n * D * H * W * C
    grad_input += n * D * H * W * C
    grad += n * Ho * Wo * O
    # Per corner, the dot product of its channels and the gradient of the sample.
    dot0 = tl.zeros((BLOCK_P, TAPS), tl.float32)
    dot1 = tl.zeros((BLOCK_P, TAPS), tl.float32)
    dot2 = tl.zeros((BLOCK_P, TAPS), tl.float32)
    dot3 = tl.zeros((BLOCK_P, TAPS), tl.float32)
    if AXES == 3:
        dot4 = tl.zeros((BLOCK_P, TAPS), tl.float32)
        dot5 = tl.zeros((BLOCK_P, TAPS), tl.float32)
        dot6 = tl.zeros((BLOCK_P, TAPS), tl.float32)
        dot7 = tl.zeros((BLOCK_P, TAPS), tl.float32)
    for c0 in range(j * Cj, (j + 1) * Cj, segment):
        group = c0 // Cg
        for c in range(0, segment, BLOCK_C):
            if MULTIPLIER:
                ch = c0 + c + lanes
                product = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
                for i in range(MULTIPLIER):
                    o = ch * MULTIPLIER + i
                    some = c + lanes < segment
                    w = tl.load(weight + (o.to(INDEX) * K + t0), mask=some, other=0.0).to(tl.float32)
                    keep = exists[:, None] & some[None, :]
                    g = tl.load(grad + (p[:, None] * O + o[None, :]), mask=keep, other=0.0).to(tl.float32)
                    product += g * w[None, :]
            else:
                k = c0 - group * Cg + c + lanes % BLOCK_C
                known = (lane_t < K) & (c + lanes % BLOCK_C < segment)
                product = tl.zeros((BLOCK_P, TAPS * BLOCK_C), tl.float32)
                for o0 in range(0, Og, BLOCK_O):
                    o = o0 + tl.arange(0, BLOCK_O)
                    g = tl.load(
                        grad + (p[:, None] * O + group * Og + o[None, :]),
                        mask=exists[:, None] & (o < Og)[None, :],
                        other=0.0,
                    )
                    w = tl.load(
                        weight + (((group * Og + o).to(INDEX) * K * Cg)[:, None] + (lane_t * Cg + k)[None, :]),
                        mask=(o < Og)[:, None] & known[None, :],
                        other=0.0,
                    )
                    product = tl.dot(g, w, product, input_precision=PRECISION)
            product = tl.reshape(product, (BLOCK_P, TAPS, BLOCK_C))
            lane = tl.arange(0, BLOCK_C)[None, None, :]
            some = c + lane < segment
            if WANT_OFFSET or WANT_MASK:
                at = input + (c0 + c)
                d0, d1, d2, d3 = corner_dots(product, at + pixel, down, right, lane, some, in0, in1, in2, in3)
                dot0 += d0
                dot1 += d1
                dot2 += d2
                dot3 += d3
                if AXES == 3:
                    d0, d1, d2, d3 = corner_dots(
                        product, at + far_pixel, down, right, lane, some, far0, far1, far2, far3
                    )
                    dot4 += d0
                    dot5 += d1
                    dot6 += d2
                    dot7 += d3
            if WANT_INPUT:
                to = grad_input + (c0 + c)
                if FIXED:
                    product *= tl.load(scale)
                corner_sums(product, to + pixel, down, right, lane, some, fy, fx, share, in0, in1, in2, in3)
                if AXES == 3:
                    corner_sums(
                        product, to + far_pixel, down, right, lane, some, fy, fx, far_share, far0, far1, far2, far3
                    )
    channel = (j * K + t).to(INDEX)[None, :]
    keep = exists[:, None] & (t < K)[None, :]
    P = Ho * Wo
    w0, w1, w2, w3 = weights(fy, fx, 1.0)
    value = w0 * dot0 + w1 * dot1 + w2 * dot2 + w3 * dot3
    dy = (1.0 - fx) * (dot2 - dot0) + fx * (dot3 - dot1)
    dx = (1.0 - fy) * (dot1 - dot0) + fy * (dot3 - dot2)
    if AXES == 3:
        behind = w0 * dot4 + w1 * dot5 + w2 * dot6 + w3 * dot7
        dz = behind - value
        value = (1.0 - fz) * value + fz * behind
        dy = (1.0 - fz) * dy + fz * ((1.0 - fx) * (dot6 - dot4) + fx * (dot7 - dot5))
        dx = (1.0 - fz) * dx + fz * ((1.0 - fy) * (dot5 - dot4) + fy * (dot7 - dot6))
    if WANT_MASK:
        to = grad_mask + n * (C // Cj * K) * P + (channel * P + p[:, None])
        tl.store(to, tl.where(counts, value, 0.0).to(grad_mask.dtype.element_ty), mask=keep)
    if WANT_OFFSET:
        to = grad_offset + n * (AXES * (C // Cj) * K) * P + (AXES * channel * P + p[:, None])
        if AXES == 3:
            tl.store(to, tl.where(counts, m * dz, 0.0).to(grad_offset.dtype.element_ty), mask=keep)
            to += P
        if AXES > 1:
            tl.store(to, tl.where(counts, m * dy, 0.0).to(grad_offset.dtype.element_ty), mask=keep)
            to += P
        tl.store(to, tl.where(counts, m * dx, 0.0).to(grad_offset.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=MAPS)
def backward_weight(
    grad, input, offset, mask, shares,
    N, D, H, W, C, O, Ho, Hr, Wo, Og, Cg, Cj, segment, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, shares_s,
    tiles, share,
    MASKED: tl.constexpr, CLAMP: tl.constexpr, INDEX: tl.constexpr, AXES: tl.constexpr, VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Compute one share of the weight's gradient, (O, K, Cg) in float32: `share` tiles of positions."""
    C = multiple(C, VECTOR)
    Cj = multiple(Cj, VECTOR)
    segment = multiple(segment, VECTOR)
    chunks = tl.cdiv(segment, BLOCK_C)
    taps = tl.cdiv(K, TAPS)
    c = tl.program_id(0) % chunks * BLOCK_C
    t0 = tl.program_id(0) // chunks % taps * TAPS
    c0 = tl.program_id(0) // (chunks * taps) * segment
    j = c0 // Cj
    group = c0 // Cg
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    sums = tl.zeros((BLOCK_O, TAPS * BLOCK_C), tl.float32)
    first = tl.program_id(1) * share
    for index in range(first, tl.minimum(first + share, N * tiles)):
        n, ho, wo, exists = tile_positions(index, tiles, Ho, Wo, BLOCK_P)
        p = ho.to(INDEX) * Wo + wo
        top, left, fy, fx, counts, m, near, fz = locate_taps(
            offset, mask, n, ho, wo, exists, j, t0,
        D, H, W, Hr, Wo, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
            offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, MASKED, CLAMP, INDEX, AXES, TAPS,
        )  # fmt: skip
        lane = tl.arange(0, BLOCK_C)
        x = sample(
            input + n * D * H * W * C + (c0 + c), top, left, fy, fx, counts, m, near, fz, lane, c + lane < segment,
            D, H, W, C, CLAMP, INDEX, AXES,
        )  # fmt: skip
        g = tl.load(
            grad + n * Ho * Wo * O + (p[:, None] * O + group * Og + o[None, :]),
            mask=exists[:, None] & (o < Og)[None, :],
            other=0.0,
        )
        # Already 0 where nothing exists, but this keeps Triton from storing `x` in its shape before `reshape`, which
        # with TF32 and four channels fits no layout of Hopper's shared memory.
        columns = tl.where(exists[:, None], tl.reshape(x.to(g.dtype), (BLOCK_P, TAPS * BLOCK_C)), 0.0)
        sums = tl.dot(tl.trans(g), columns, sums, input_precision=PRECISION)
    lanes = tl.arange(0, TAPS * BLOCK_C)
    t = t0 + lanes // BLOCK_C
    k = c + lanes % BLOCK_C
    keep = (o < Og)[:, None] & ((t < K) & (k < segment))[None, :]
    to = shares + tl.program_id(1).to(tl.int64) * shares_s
    row = (group * Og + o).to(INDEX) * K * Cg
    tl.store(to + (row[:, None] + (t * Cg + c0 - group * Cg + k)[None, :]), sums, mask=keep)


@triton.jit(do_not_specialize=MAPS)
def backward_weight_depthwise(
    grad, input, offset, mask, shares,
    N, D, H, W, C, O, Ho, Hr, Wo, Cj, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, shares_s,
    tiles, share, blocks,
    MASKED: tl.constexpr, CLAMP: tl.constexpr, INDEX: tl.constexpr, AXES: tl.constexpr, VECTOR: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute one share of a depthwise weight's gradient, (O, K) in float32, for BLOCK_O outputs at one tap."""
    C = multiple(C, VECTOR)
    Cj = multiple(Cj, VECTOR)
    t = tl.program_id(0) % K
    j = tl.program_id(0) // K // blocks
    o, c, some = depthwise_outputs(tl.program_id(0) // K % blocks, j, Cj, MULTIPLIER, BLOCK_O)
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    first = tl.program_id(1) * share
    for index in range(first, tl.minimum(first + share, N * tiles)):
        n, ho, wo, exists = tile_positions(index, tiles, Ho, Wo, BLOCK_P)
        p = ho.to(INDEX) * Wo + wo
        top, left, fy, fx, counts, m, near, fz = locate_taps(
            offset, mask, n, ho, wo, exists, j, t,
            D, H, W, Hr, Wo, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
            offset_n, offset_c, offset_p, mask_n, mask_c, mask_p, MASKED, CLAMP, INDEX, AXES, 1,
        )  # fmt: skip
        x = sample(
            input + n * D * H * W * C + j * Cj, top, left, fy, fx, counts, m, near, fz, c, some, D, H, W, C,
            CLAMP, INDEX, AXES,
        )  # fmt: skip
        g = tl.load(
            grad + n * Ho * Wo * O + (p[:, None] * O + o[None, :]), mask=exists[:, None] & some[None, :], other=0.0
        )
        sums += tl.reshape(x, (BLOCK_P, BLOCK_O)) * g.to(tl.float32)
    to = shares + tl.program_id(1).to(tl.int64) * shares_s
    tl.store(to + (o.to(INDEX) * K + t), tl.sum(sums, 0), mask=some)
