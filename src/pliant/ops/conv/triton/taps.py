"""Where the taps of a tile of output positions sample: computed once for all channels of an offset group."""

from __future__ import annotations

import triton
import triton.language as tl

from pliant.ops.sampling.triton import locate

# Sizes that kernels are not specialized for: images come in many sizes, and knowing them makes no load faster.
MAPS = ["N", "H", "W", "Ho", "Wo", "tiles", "share"]


@triton.jit
def locate_taps(
    offset, mask, n, ho, wo, exists, j, t0,
    H, W, Wo, K, Kw, sh, sw, ph, pw, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p,
    MASKED: tl.constexpr, CLAMP: tl.constexpr, INDEX: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Return top, left, fy, fx, counts and mask of TAPS taps from `t0`, of offset group `j` at positions (ho, wo).

    P positions give (P, TAPS). Coordinates are float32.
    """
    ho = ho[:, None]
    wo = wo[:, None]
    t = t0 + tl.arange(0, TAPS)[None, :]
    p = ho.to(INDEX) * Wo + wo
    channel = (j * K + t).to(INDEX)
    exists = exists[:, None] & (t < K)
    at = offset + n * offset_n + (2 * channel * offset_c + p * offset_p)
    dy = tl.load(at, mask=exists, other=0.0).to(tl.float32)
    dx = tl.load(at + offset_c, mask=exists, other=0.0).to(tl.float32)
    y = (ho * sh - ph + t // Kw * dh).to(tl.float32) + dy
    x = (wo * sw - pw + t % Kw * dw).to(tl.float32) + dx
    top, left, fy, fx, counts = locate(y, x, exists, H, W, CLAMP)
    if MASKED:
        m = tl.load(mask + n * mask_n + (channel * mask_c + p * mask_p), mask=exists, other=0.0).to(tl.float32)
    else:
        m = tl.full(fy.shape, 1.0, tl.float32)
    return top, left, fy, fx, counts, m
