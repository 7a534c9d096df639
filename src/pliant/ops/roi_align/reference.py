"""RoIAlign in plain PyTorch: the formula, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from pliant.ops._averaging import average_of_grid


def roi_align(input: Tensor, rois: Tensor, Ph: int, Pw: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    """Average every bin over a regular grid of bilinear samples.

    Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
    """
    return average_of_grid(input, rois, None, (Ph, Pw), scale, ratio, 0.0, aligned, (1, 1)).to(input.dtype)
