"""Where the taps of a tile of output positions sample: once for all channels of an offset group."""

from __future__ import annotations

import triton
import triton.language as tl

from pliant.ops.sampling.triton import locate

# Sizes of which no other kernel is compiled: pictures come in many, and nothing is loaded faster for knowing them.
MAPS = ["N", "H", "W", "Ho", "Wo", "tiles", "share"]


@triton.jit
def locate_taps(
    offset, mask, ho, wo, exists, j, t,
    H, W, Wo, K, Kw, sh, sw, ph, pw, dh, dw,
    offset_c, offset_p, mask_c, mask_p,
    MASKED: tl.constexpr, CLAMP: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Return top, left, fy, fx, counts and mask of taps `t` of offset group `j` at positions (ho, wo).

    Positions (P, 1) and taps (1, T) give (P, T). `offset` and `mask` point at the image. Coordinates are float32.
    """
    p = ho.to(INDEX) * Wo + wo
    channel = (j * K + t).to(INDEX)
    exists = exists & (t < K)
    at = offset + (2 * channel * offset_c + p * offset_p)
    dy = tl.load(at, mask=exists, other=0.0).to(tl.float32)
    dx = tl.load(at + offset_c, mask=exists, other=0.0).to(tl.float32)
    y = (ho * sh - ph + t // Kw * dh).to(tl.float32) + dy
    x = (wo * sw - pw + t % Kw * dw).to(tl.float32) + dx
    top, left, fy, fx, counts = locate(y, x, exists, H, W, CLAMP)
    if MASKED:
        m = tl.load(mask + (channel * mask_c + p * mask_p), mask=exists, other=0.0).to(tl.float32)
    else:
        m = tl.full(fy.shape, 1.0, tl.float32)
    return top, left, fy, fx, counts, m
