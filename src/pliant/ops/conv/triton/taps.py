"""Where the taps of a tile of output positions sample: computed once for all channels of an offset group.

Maps of every number of axes are maps of rows here, as in csrc/conv: a sequence is one row, the planes of a volume lie
one after another. A sample of a volume is two bilinear ones, in the planes before and behind it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pliant.ops.sampling.triton import locate

# Sizes that kernels are not specialized for: images come in many sizes, and knowing them makes no load faster.
MAPS = ["N", "D", "H", "W", "Ho", "Hr", "Wo", "tiles", "share"]


@triton.jit
def locate_taps(
    offset, mask, n, ho, wo, exists, j, t0,
    D, H, W, Hr, Wo, K, Kh, Kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,
    offset_n, offset_c, offset_p, mask_n, mask_c, mask_p,
    MASKED: tl.constexpr, CLAMP: tl.constexpr, INDEX: tl.constexpr, AXES: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Return top, left, fy, fx, counts, mask, near and fz of TAPS taps from `t0`, of offset group `j` at (ho, wo).

    P positions give (P, TAPS). Coordinates are float32. `near` is the plane before the sample and `fz` its distance
    from there, both 0 without planes. Row `ho` of the grid counts the rows of all planes, of which each has `Hr`.
    """
    ho = ho[:, None]
    wo = wo[:, None]
    t = t0 + tl.arange(0, TAPS)[None, :]
    p = ho.to(INDEX) * Wo + wo
    channel = (j * K + t).to(INDEX)
    exists = exists[:, None] & (t < K)
    at = offset + n * offset_n + (AXES * channel * offset_c + p * offset_p)
    near = tl.zeros(exists.shape, tl.int32)
    fz = tl.zeros(exists.shape, tl.float32)
    if AXES == 3:
        z = (ho // Hr * sd - pd + t // (Kh * Kw) * dd).to(tl.float32)
        z += tl.load(at, mask=exists, other=0.0).to(tl.float32)
        at += offset_c
        ho = ho % Hr
        first: tl.constexpr = 0.0 if CLAMP else -1.0
        exists = exists & (z >= first) & (z < D)
        z = tl.where(exists, z, 0.0)
        floor = tl.floor(z)
        near = floor.to(tl.int32)
        fz = z - floor
    row = ho * sh - ph + t // Kw % Kh * dh
    if AXES > 1:
        y = row.to(tl.float32) + tl.load(at, mask=exists, other=0.0).to(tl.float32)
        at += offset_c
    else:
        y = row.to(tl.float32)
    x = (wo * sw - pw + t % Kw * dw).to(tl.float32) + tl.load(at, mask=exists, other=0.0).to(tl.float32)
    top, left, fy, fx, counts = locate(y, x, exists, H, W, CLAMP)
    if MASKED:
        m = tl.load(mask + n * mask_n + (channel * mask_c + p * mask_p), mask=exists, other=0.0).to(tl.float32)
    else:
        m = tl.full(fy.shape, 1.0, tl.float32)
    return top, left, fy, fx, counts, m, near, fz


@triton.jit
def planes(near, D, HWC, CLAMP: tl.constexpr, INDEX: tl.constexpr):
    """Return offsets in memory, (P, T, 1), of the near and the far plane, and whether they exist, (P, T)."""
    in_near = near >= 0
    in_far = near + 1 < D
    far = near + 1
    if CLAMP:
        far = tl.where(in_far, far, near)
        in_far = in_near
    return (near.to(INDEX) * HWC)[:, :, None], (far.to(INDEX) * HWC)[:, :, None], in_near, in_far
