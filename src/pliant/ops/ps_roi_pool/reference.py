"""Position-sensitive RoI pooling in plain PyTorch: the formula, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.ops._averaging import working
from pliant.ops._bins import spans, visits


def ps_roi_pool(input: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Average every bin over the pixels of its own channels, ``(c·Ph + ph)·Pw + pw``; 0 where a bin is empty.

    Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
    """
    N, C, H, W = input.shape
    Ph, Pw = size
    maps, corners, image, alive = working(input, rois)
    top, bottom, left, right = spans(corners, alive, size, scale, (H, W), 0)
    table = maps.reshape(N, C // (Ph * Pw), Ph * Pw * H * W).transpose(0, 1).flatten(1)
    bins = torch.arange(Ph * Pw, device=input.device).view(Ph, Pw)
    base = (image.view(-1, 1, 1) * (Ph * Pw) + bins) * (H * W)
    # Zeros that depend on the map, so that there is a gradient where all bins are empty.
    total = table[:, :0].sum(1).view(-1, 1, 1, 1).expand(-1, len(rois), Ph, Pw)
    for inside, pixel in visits(top, bottom, left, right, W):
        value = table.index_select(1, (base + pixel).flatten()).view(total.shape)
        total = total + torch.where(inside, value, 0)
    area = ((bottom - top) * (right - left)).clamp(min=1)
    return (total / area).transpose(0, 1).to(input.dtype)
