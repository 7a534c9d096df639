"""What the GPU kernels of all RoI operators begin with: boxes, the channels of bins, the largest gradient."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def round_away(x):
    """Round half away from zero, as C does."""
    whole = tl.where(x < 0.0, tl.ceil(x), tl.floor(x))
    return whole + tl.where(tl.abs(x - whole) >= 0.5, tl.where(x < 0.0, -1.0, 1.0), 0.0)


@triton.jit
def finite(x):
    """Return whether `x` is finite: False for NaN too."""
    return tl.abs(x) < float("inf")


@triton.jit
def corners(rois, r, N):
    """Return whether RoI `r` is valid, its image, and its corners; all 0 unless it is."""
    at = rois + r * 5
    image = tl.load(at).to(tl.float32)
    x1 = tl.load(at + 1).to(tl.float32)
    y1 = tl.load(at + 2).to(tl.float32)
    x2 = tl.load(at + 3).to(tl.float32)
    y2 = tl.load(at + 4).to(tl.float32)
    valid = (image >= 0.0) & (image < N) & finite(x1) & finite(y1) & finite(x2) & finite(y2)
    image = tl.where(valid, image, 0.0).to(tl.int64)
    x1 = tl.where(valid, x1, 0.0)
    y1 = tl.where(valid, y1, 0.0)
    x2 = tl.where(valid, x2, 0.0)
    y2 = tl.where(valid, y2, 0.0)
    return valid, image, x1, y1, x2, y2


def grouped(input: Tensor, groups: int) -> Tensor:
    """Return a map (N, C, H, W) as (N, H, W, groups, C/groups): the channels that a bin reads lie side by side.

    Channel ``c·groups + g`` belongs to group g.
    """
    map: Tensor = input.unflatten(1, (-1, groups)).permute(0, 3, 4, 2, 1).contiguous()
    return map


def ungrouped(sums: Tensor, groups: int) -> Tensor:
    """Return sums (N, groups·outputs, H, W) over a map from :func:`grouped` with its channels in order again."""
    map: Tensor = sums.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return map


def largest(grad: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return an upper limit of the input's gradient: a pixel gets at most the gradient of every bin, times its mask."""
    R, _, Ph, Pw = grad.shape
    most = R * Ph * Pw * grad.abs().amax().double()
    return most if mask is None else most * mask.abs().amax().double()
