"""Deformable position-sensitive RoI pooling in plain PyTorch: the formula, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.ops._averaging import sums, working


def deform_psroi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    P: int,
    scale: float,
    group: int,
    part: int,
    samples: int,
    std: float,
) -> Tensor:
    """Average every bin over those of its samples that lie in the map, moved by ``std·(width, height)·offset``.

    Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
    """
    _, _, H, W = input.shape
    maps, corners, image, alive = working(input, rois)
    x1, y1, x2, y2 = _round(corners).unbind(1)
    x1, y1, x2, y2 = x1 * scale - 0.5, y1 * scale - 0.5, (x2 + 1) * scale - 0.5, (y2 + 1) * scale - 0.5
    width, height = (x2 - x1).clamp(min=0.1), (y2 - y1).clamp(min=0.1)
    alive = alive & (width * std).isfinite() & (height * std).isfinite() & x1.isfinite() & y1.isfinite()
    x1, y1, width, height = (torch.where(alive, t, 0).view(-1, 1, 1, 1) for t in (x1, y1, width, height))

    bins = torch.arange(P, device=input.device)
    dx, dy = torch.zeros_like(x1), torch.zeros_like(y1)
    if offset is not None:
        # Class by class, and for every bin the offset of the part it lies in.
        parts = bins * part // P
        moved = offset.to(maps.dtype).unflatten(1, (-1, 2))[..., parts[:, None], parts]
        dx, dy = std * width * moved[:, :, 0], std * height * moved[:, :, 1]

    def line(start: Tensor, size: Tensor, shift: Tensor, place: Tensor, extent: int) -> Tensor:
        origin = (start + place * (size / P) + shift).unsqueeze(-1)
        position = origin + torch.arange(samples, device=origin.device) * (size / P / samples).unsqueeze(-1)
        inside = (position >= -0.5) & (position <= extent - 0.5) & alive.view(-1, 1, 1, 1, 1)
        return torch.where(inside, position.clamp(0, extent - 1), torch.nan)

    y, x = line(y1, height, dy, bins.view(P, 1), H), line(x1, width, dx, bins, W)
    counted = (~y.isnan()).sum(-1) * (~x.isnan()).sum(-1)
    output = (sums(maps, image, y, x, (P, P), (group, group)) / counted.clamp(min=1).unsqueeze(2)).flatten(1, 2)
    if mask is not None:
        output = output * mask.to(output.dtype)
    return output.to(input.dtype)


def _round(x: Tensor) -> Tensor:
    """Round half away from zero, as C does and torch does not."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0)
