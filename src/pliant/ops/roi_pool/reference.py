"""RoI max pooling in plain PyTorch: the formula, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.ops._averaging import working
from pliant.ops._bins import spans, visits


def roi_pool(input: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Take the maximum of every bin, 0 where a bin is empty.

    Arguments are already checked.
    """
    N, C, H, W = input.shape
    # Chosen in float32, taken from the map itself: no value is rounded, and the gradient goes where it came from.
    maps, corners, image, alive = working(input.detach(), rois)
    top, bottom, left, right = spans(corners, alive, size, scale, (H, W), 1)
    maps = maps.transpose(0, 1).reshape(C, N * H * W)
    base = image.view(-1, 1, 1) * (H * W)
    best = maps.new_zeros(C, len(rois), *size)
    place = torch.full_like(best, -1, dtype=torch.int64)
    for inside, pixel in visits(top, bottom, left, right, W):
        value = maps.index_select(1, (base + pixel).flatten()).view(best.shape)
        # NaN is larger than every number, as elsewhere in torch; of equals the first one stays.
        larger = (value > best) | (value.isnan() & ~best.isnan()) | (place < 0)
        take = larger & inside
        best, place = torch.where(take, value, best), torch.where(take, base + pixel, place)
    table = input.transpose(0, 1).reshape(C, N * H * W)
    taken = table.gather(1, place.clamp(min=0).flatten(1)).view(best.shape)
    return torch.where(place < 0, 0, taken).transpose(0, 1)
