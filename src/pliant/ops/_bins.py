"""Bins of whole pixels in plain PyTorch: which part of the map a bin of the older RoI operators reads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def spans(
    corners: Tensor, alive: Tensor, size: tuple[int, int], scale: float, extent: tuple[int, int], more: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the pixels of every bin: rows ``[top, bottom)`` and columns ``[left, right)``, within the map.

    ``top = floor(ph·h/Ph) + start``, ``bottom = ceil((ph + 1)·h/Ph) + start`` with ``start = round(y1·scale)`` and
    ``h = max(round(y2·scale) − start + more, 1)``, where round is C's; columns alike. Neighbouring bins may overlap.

    Args:
        corners: (R, 4), ``x1 y1 x2 y2`` in pixels of the image, finite.
        alive: (R,), of the others every bin is empty.
        size: Ph, Pw.
        scale: pixels of the map for one pixel of the boxes.
        extent: H, W.
        more: 1 where the pixel of the end is part of the box, else 0.

    Returns:
        (R, Ph, 1), (R, Ph, 1), (R, 1, Pw), (R, 1, Pw), int64.
    """
    x1, y1, x2, y2 = _round(corners * scale).unbind(1)
    top, bottom = _spans(y1, y2, alive, size[0], extent[0], more)
    left, right = _spans(x1, x2, alive, size[1], extent[1], more)
    return top.unsqueeze(2), bottom.unsqueeze(2), left.unsqueeze(1), right.unsqueeze(1)


def _spans(start: Tensor, end: Tensor, alive: Tensor, bins: int, extent: int, more: int) -> tuple[Tensor, Tensor]:
    length = (end - start + more).clamp(min=1)
    # Not finite where the corners are huge.
    alive = (alive & start.isfinite() & length.isfinite())[:, None]
    start, bin = start[:, None], (length / bins)[:, None]
    k = torch.arange(bins, device=start.device)
    low, high = (k * bin).floor() + start, ((k + 1) * bin).ceil() + start
    low, high = (torch.where(alive, t.clamp(0, extent), 0).long() for t in (low, high))
    return low, high


def _round(x: Tensor) -> Tensor:
    """Round half away from zero, as C does and torch does not."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0)


def visits(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, W: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk over all bins at once, each row by row: which bins still have a pixel, and which one, ``y·W + x``."""
    if top.numel() == 0:
        return
    for i in range(int((bottom - top).max())):
        for j in range(int((right - left).max())):
            y, x = top + i, left + j
            inside = (y < bottom) & (x < right)
            yield inside, torch.where(inside, y * W + x, 0)
