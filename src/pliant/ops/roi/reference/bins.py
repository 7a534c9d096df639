"""Bins of whole pixels in plain PyTorch: the older RoI operators, and which pixels their bins read.

Arguments of the operators are already checked. Low precision computes in float32 and rounds once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pliant.ops.roi.reference.averages import round_away, working


def roi_pool(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float) -> Tensor:
    """Take the maximum of every bin, 0 where a bin is empty."""
    N, C, H, W = input.shape
    # Maxima are found in float32 and read from the map itself: no value is rounded, and autograd follows the read.
    maps, corners, image, valid = working(input.detach(), rois)
    top, bottom, left, right = spans(corners, valid, output_size, scale, (H, W), 1)
    maps = maps.transpose(0, 1).reshape(C, N * H * W)
    base = image.view(-1, 1, 1) * (H * W)
    best = maps.new_zeros(C, len(rois), *output_size)
    place = torch.full_like(best, -1, dtype=torch.int64)
    for inside, pixel in visits(top, bottom, left, right, W):
        value = maps.index_select(1, (base + pixel).flatten()).view(best.shape)
        # NaN is larger than every number, as elsewhere in torch; of equal values the first one stays.
        larger = (value > best) | (value.isnan() & ~best.isnan()) | (place < 0)
        take = larger & inside
        best, place = torch.where(take, value, best), torch.where(take, base + pixel, place)
    table = input.transpose(0, 1).reshape(C, N * H * W)
    taken = table.gather(1, place.clamp(min=0).flatten(1)).view(best.shape)
    return torch.where(place < 0, 0, taken).transpose(0, 1)


def ps_roi_pool(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float) -> Tensor:
    """Average every bin over the pixels of its own channels, ``(c·Ph + ph)·Pw + pw``; 0 where a bin is empty."""
    N, C, H, W = input.shape
    Ph, Pw = output_size
    maps, corners, image, valid = working(input, rois)
    top, bottom, left, right = spans(corners, valid, output_size, scale, (H, W), 0)
    table = maps.reshape(N, C // (Ph * Pw), Ph * Pw * H * W).transpose(0, 1).flatten(1)
    bins = torch.arange(Ph * Pw, device=input.device).view(Ph, Pw)
    base = (image.view(-1, 1, 1) * (Ph * Pw) + bins) * (H * W)
    # Zeros that depend on the map, so that it has a gradient where all bins are empty.
    total = table[:, :0].sum(1).view(-1, 1, 1, 1).expand(-1, len(rois), Ph, Pw)
    for inside, pixel in visits(top, bottom, left, right, W):
        value = table.index_select(1, (base + pixel).flatten()).view(total.shape)
        total = total + torch.where(inside, value, 0)
    area = ((bottom - top) * (right - left)).clamp(min=1)
    return (total / area).transpose(0, 1).to(input.dtype)


def spans(
    corners: Tensor, valid: Tensor, size: Sequence[int], scale: float, extent: tuple[int, int], more: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the pixels of every bin: rows ``[top, bottom)`` and columns ``[left, right)``, within the map.

    ``top = floor(ph·h/Ph) + start``, ``bottom = ceil((ph + 1)·h/Ph) + start`` with ``start = round(y1·scale)`` and
    ``h = max(round(y2·scale) − start + more, 1)``, where round is C's; columns likewise. Neighbouring bins may
    overlap.

    Args:
        corners: (R, 4), ``x1 y1 x2 y2`` in pixels of the image, finite.
        valid: (R,); the bins of other boxes are empty.
        size: Ph, Pw.
        scale: pixels of the map per pixel of the boxes.
        extent: H, W.
        more: 1 where the last pixel belongs to the box, else 0.

    Returns:
        (R, Ph, 1), (R, Ph, 1), (R, 1, Pw), (R, 1, Pw), int64.
    """
    x1, y1, x2, y2 = round_away(corners * scale).unbind(1)
    top, bottom = _spans(y1, y2, valid, size[0], extent[0], more)
    left, right = _spans(x1, x2, valid, size[1], extent[1], more)
    return top.unsqueeze(2), bottom.unsqueeze(2), left.unsqueeze(1), right.unsqueeze(1)


def _spans(start: Tensor, end: Tensor, valid: Tensor, bins: int, extent: int, more: int) -> tuple[Tensor, Tensor]:
    length = (end - start + more).clamp(min=1)
    # Not finite where the corners are huge.
    valid = (valid & start.isfinite() & length.isfinite())[:, None]
    start, bin = start[:, None], (length / bins)[:, None]
    k = torch.arange(bins, device=start.device)
    low, high = (k * bin).floor() + start, ((k + 1) * bin).ceil() + start
    low, high = (torch.where(valid, t.clamp(0, extent), 0).long() for t in (low, high))
    return low, high


def visits(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, W: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Visit the pixels of all bins at once, row by row: yield which bins have one left, and its index ``y·W + x``."""
    if top.numel() == 0:
        return
    for i in range(int((bottom - top).max())):
        for j in range(int((right - left).max())):
            y, x = top + i, left + j
            inside = (y < bottom) & (x < right)
            yield inside, torch.where(inside, y * W + x, 0)
