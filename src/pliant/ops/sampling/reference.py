"""Linear sampling in plain PyTorch: the meaning that every kernel is tested against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

BOUNDARIES = ("zeros", "clamp")


def linear(input: Tensor, at: Sequence[Tensor], clamp: bool) -> Tensor:
    """Sample a map of D axes at fractional positions: ``x(p) = Σ_q Π_d max(0, 1−|q_d−p_d|)·x(q)``.

    With boundary "zeros" pixels outside the map are 0. With "clamp" (the original DCNv1 operator) positions outside
    ``[0, H) × [0, W)`` sample nothing and the far neighbour clamps to the last row or column. NaN and infinite
    positions sample nothing. At integers the derivative is the right-sided one, since ``floor`` has gradient 0.

    Args:
        input: (B, C, H, W), or with any number of axes after the first two.
        at: one (B, P) per axis, positions in pixels.
        clamp: whether the boundary is "clamp".

    Returns:
        (B, C, P), differentiable in all tensors, any number of times.
    """
    B, C, *size = input.shape
    flat = input.reshape(B, C, prod(size))
    total = input.new_zeros(B, C, at[0].shape[1])
    if prod(size) == 0:
        return total
    for index, weight, inside in _corners(at, size, clamp):
        corner = flat.gather(2, index[:, None].expand(B, C, -1))
        total = total + weight[:, None] * torch.where(inside[:, None], corner, 0)
    return total


def scatter(values: Tensor, at: Sequence[Tensor], size: Sequence[int], clamp: bool) -> Tensor:
    """Add values to a map of zeros around fractional positions: the adjoint of :func:`linear` in its map.

    Args:
        values: (B, C, P).
        at: one (B, P) per axis, positions in pixels.
        size: of the map, one number per axis.
        clamp: whether the boundary is "clamp".

    Returns:
        (B, C, *size), differentiable in all tensors, any number of times.
    """
    B, C, _ = values.shape
    total = values.new_zeros(B, C, prod(size))
    for index, weight, inside in _corners(at, size, clamp):
        added = torch.where(inside[:, None], weight[:, None] * values, 0)
        total = total.scatter_add(2, index[:, None].expand(B, C, -1), added)
    return total.reshape(B, C, *size)


def _corners(at: Sequence[Tensor], size: Sequence[int], clamp: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the 2^D neighbours of every position, (B, P) each: index in the flat map, weight, whether it counts."""
    first = 0 if clamp else -1
    counts = torch.ones_like(at[0], dtype=torch.bool)
    for a, n in zip(at, size, strict=True):
        counts = counts & (a >= first) & (a < n)
    # Positions out of bounds become 0 before floor and conversion: no NaN, no huge integer, no gradient.
    at = [torch.where(counts, a, 0) for a in at]
    low = [a.detach().floor() for a in at]
    for corner in product((0, 1), repeat=len(at)):
        index, inside = torch.zeros_like(low[0], dtype=torch.long), counts
        weight = torch.ones_like(at[0])
        for a, floor, n, far in zip(at, low, size, corner, strict=True):
            place, past = floor + far, a - floor
            weight = weight * (past if far else 1 - past)
            if not clamp:
                inside = inside & (place >= 0) & (place < n)
            index = index * n + place.clamp(0, n - 1).long()
        yield index, weight, inside
