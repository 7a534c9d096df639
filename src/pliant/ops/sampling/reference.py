"""Bilinear sampling in plain PyTorch: the meaning that every kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

BOUNDARIES = ("zeros", "clamp")


def bilinear(input: Tensor, y: Tensor, x: Tensor, clamp: bool) -> Tensor:
    """Sample a map at fractional positions: ``x(p) = Σ_q max(0, 1−|q_y−p_y|)·max(0, 1−|q_x−p_x|)·x(q)``.

    With boundary "zeros" pixels outside the map are 0. With "clamp" (the original DCNv1 operator) positions outside
    ``[0, H) × [0, W)`` sample nothing and the far neighbour clamps to the last row or column. NaN and infinite
    positions sample nothing. At integers the derivative is the right-sided one, since ``floor`` has gradient 0.

    Args:
        input: (B, C, H, W), the map.
        y: (B, P), vertical positions in pixels.
        x: (B, P), horizontal positions in pixels.
        clamp: whether the boundary is "clamp".

    Returns:
        (B, C, P), differentiable in all three tensors, any number of times.
    """
    B, C, H, W = input.shape
    first = 0 if clamp else -1
    counts = (y >= first) & (y < H) & (x >= first) & (x < W)
    # Positions out of bounds become 0 before floor and conversion: no NaN, no huge integer, no gradient.
    y, x = torch.where(counts, y, 0), torch.where(counts, x, 0)
    top, left = y.detach().floor(), x.detach().floor()
    fy, fx = y - top, x - left
    flat = input.reshape(B, C, H * W)
    total = input.new_zeros(B, C, y.shape[1])
    if H * W == 0:
        return total
    for row, weight_y in ((top, 1 - fy), (top + 1, fy)):
        for column, weight_x in ((left, 1 - fx), (left + 1, fx)):
            inside = counts
            if not clamp:
                inside = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            index = row.clamp(0, H - 1).long() * W + column.clamp(0, W - 1).long()
            corner = flat.gather(2, index[:, None].expand(B, C, -1))
            total = total + (weight_y * weight_x)[:, None] * torch.where(inside[:, None], corner, 0)
    return total
