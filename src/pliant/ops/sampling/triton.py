"""Bilinear sampling of channels-last maps: where a sample lies, what it reads and adds to. The one copy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def tile_positions(tile, Ho, Wo, BLOCK: tl.constexpr):
    """Return row and column of every output position of a tile, and which of them exist.

    Positions are counted through patches of 8 rows and 16 columns, lower at the bottom and narrower at the right edge:
    neighbours read the same pixels, which are still in the cache, and only the last tile has lanes to spare.
    """
    q = tile * BLOCK + tl.arange(0, BLOCK)
    exists = q < Ho * Wo
    q = tl.minimum(q, Ho * Wo - 1)
    top = q // (8 * Wo) * 8
    height = tl.minimum(Ho - top, 8)
    q -= top * Wo
    left = q // (height * 16) * 16
    width = tl.minimum(Wo - left, 16)
    q -= left * height
    return top + q // width, left + q % width, exists


@triton.jit
def locate(y, x, exists, H, W, CLAMP: tl.constexpr):
    """Return the upper left corner of every sample, its position past that corner, and whether it counts."""
    first: tl.constexpr = 0.0 if CLAMP else -1.0
    # False for NaN. Positions that do not count become 0: only small numbers are converted to integers.
    counts = exists & (y >= first) & (y < H) & (x >= first) & (x < W)
    y = tl.where(counts, y, 0.0)
    x = tl.where(counts, x, 0.0)
    top = tl.floor(y)
    left = tl.floor(x)
    return top.to(tl.int32), left.to(tl.int32), y - top, x - left, counts


@triton.jit
def steps(top, left, H, W, CLAMP: tl.constexpr):
    """Return how many rows down and columns right the far corners lie: with CLAMP 0 at the last row and column."""
    if CLAMP:
        return tl.where(top + 1 < H, 1, 0), tl.where(left + 1 < W, 1, 0)
    else:
        return tl.full(top.shape, 1, tl.int32), tl.full(left.shape, 1, tl.int32)


@triton.jit
def inside(top, left, counts, H, W, CLAMP: tl.constexpr):
    """Return which of the four corners are read: upper left, upper right, lower left, lower right."""
    if CLAMP:
        return counts, counts, counts, counts
    else:
        upper = counts & (top >= 0)
        lower = counts & (top + 1 < H)
        near = left >= 0
        far = left + 1 < W
        return upper & near, upper & far, lower & near, lower & far


@triton.jit
def weights(fy, fx, m):
    """Return the four corners' bilinear weights, times `m`."""
    gy = (1.0 - fy) * m
    fy = fy * m
    return gy * (1.0 - fx), gy * fx, fy * (1.0 - fx), fy * fx


@triton.jit
def add(to, value, mask):
    """Add to memory, in the order in which the programs come; integers, whose order does not matter, are rounded to."""
    tl.atomic_add(to, value.to(to.dtype.element_ty), mask=mask, sem="relaxed")


def units(most: Tensor) -> Tensor:
    """Return how many units 1 is, where sums of at most `most` are to fit into 63 bits: a power of two, in float32.

    What the 63 bits hold below the largest sum is far finer than float32. NaN and infinity make it NaN, and with it all
    sums. It stays on the device, which nobody waits for.
    """
    # Of nothing but zeros any unit will do; float32 holds no power beyond 127.
    unit = torch.exp2((61 - most.log2()).floor().clamp(max=120))
    return torch.where(most.isfinite(), unit, torch.nan).float()
