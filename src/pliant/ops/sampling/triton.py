"""What GPU kernels on channels-last maps share: positions of a program, bilinear samples, stores, atomic sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def multiple(n, OF: tl.constexpr):
    """Return `n`, a multiple of OF, so that the compiler knows it: it then loads OF channels at once."""
    return n // OF * OF


@triton.jit
def positions(index, tiles, BLOCK: tl.constexpr):
    """Return the image of tile `index`, in 64 bits, and its positions there; every image has `tiles` tiles."""
    return (index // tiles).to(tl.int64), index % tiles * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def tile_positions(index, tiles, Ho, Wo, BLOCK: tl.constexpr):
    """Return the image of tile `index`, row and column of its output positions, and which of them exist.

    Positions are counted through patches of 8 rows and 16 columns, lower at the bottom and narrower at the right edge:
    neighbours read the same pixels while these are in the cache, and only the last tile has unused lanes.
    """
    n, q = positions(index, tiles, BLOCK)
    exists = q < Ho * Wo
    q = tl.minimum(q, Ho * Wo - 1)
    top = q // (8 * Wo) * 8
    height = tl.minimum(Ho - top, 8)
    q -= top * Wo
    left = q // (height * 16) * 16
    width = tl.minimum(Wo - left, 16)
    q -= left * height
    return n, top + q // width, left + q % width, exists


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
def addresses(top, left, H, W, C, CLAMP: tl.constexpr, INDEX: tl.constexpr):
    """Return offsets in memory, (P, T, 1): of every upper left corner in its image, and one row down, one column right.

    With CLAMP the last row and column are their own far neighbours.
    """
    if CLAMP:
        down = tl.where(top + 1 < H, 1, 0)
        right = tl.where(left + 1 < W, 1, 0)
    else:
        down = tl.full(top.shape, 1, tl.int32)
        right = tl.full(left.shape, 1, tl.int32)
    pixel = (top.to(INDEX) * W + left) * C
    return pixel[:, :, None], (down.to(INDEX) * W * C)[:, :, None], (right * C)[:, :, None]


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
    """Return the bilinear weights of the four corners, times `m`."""
    gy = (1.0 - fy) * m
    fy = fy * m
    return gy * (1.0 - fx), gy * fx, fy * (1.0 - fx), fy * fx


@triton.jit
def store(to, at, value, mask, LAST: tl.constexpr):
    """Store a tile (positions, channels) at `to + at`: neighbouring lanes store channels with LAST, else positions."""
    value = value.to(to.dtype.element_ty)
    if LAST:
        tl.store(to + at, value, mask=mask)
    else:
        tl.store(to + tl.trans(at), tl.trans(value), mask=tl.trans(mask))


@triton.jit
def add(to, value, mask):
    """Add to memory atomically, in any order; `value` is rounded where the memory holds integers."""
    tl.atomic_add(to, value.to(to.dtype.element_ty), mask=mask, sem="relaxed")


class Sums(NamedTuple):
    """A tensor (N, C, H, W) of zeros that kernels :func:`add` to.

    It is float32. Under `torch.use_deterministic_algorithms` it is int64, and kernels multiply every term by `unit`: a
    sum of integers does not depend on the order of its terms.
    """

    tensor: Tensor
    unit: Tensor | None

    @classmethod
    def zeros(cls, grad: Tensor, size: Sequence[int], channels_last: bool, most: Callable[[], Tensor]) -> Sums:
        """Return zeros on the device of `grad`; `most` returns an upper limit of the sums that will be added."""
        unit = units(most()) if grad.numel() and torch.are_deterministic_algorithms_enabled() else None
        N, C, H, W = size
        dtype = torch.float32 if unit is None else torch.int64
        tensor = grad.new_zeros((N, H, W, C) if channels_last else (N, C, H, W), dtype=dtype)
        return cls(tensor.permute(0, 3, 1, 2) if channels_last else tensor, unit)

    def total(self) -> Tensor:
        """Return the sums as floating-point numbers."""
        return self.tensor if self.unit is None else self.tensor / self.unit


def units(most: Tensor) -> Tensor:
    """Return how many units make 1 in sums of at most `most` that are to fit into 63 bits: a power of two, in float32.

    The largest sum still has far more bits than float32 keeps. NaN or infinity makes the unit NaN, and with it all
    sums. The result stays on the device, so that nothing waits for it.
    """
    # For nothing but zeros any unit will do; float32 holds no power of two beyond 127.
    unit = torch.exp2((61 - most.log2()).floor().clamp(max=120))
    return torch.where(most.isfinite(), unit, torch.nan).float()
