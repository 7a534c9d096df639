"""Position-sensitive RoIAlign in plain PyTorch: the formula, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from pliant.ops._averaging import average_of_grid


def ps_roi_align(input: Tensor, rois: Tensor, Ph: int, Pw: int, scale: float, ratio: int) -> Tensor:
    """Average every bin over a regular grid of bilinear samples of its own channels, ``(c·Ph + ph)·Pw + pw``.

    Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
    """
    return average_of_grid(input, rois, None, (Ph, Pw), scale, ratio, 0.0, True, (Ph, Pw)).to(input.dtype)
