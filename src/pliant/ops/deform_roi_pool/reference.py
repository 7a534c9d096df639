"""Deformable RoI pooling in plain PyTorch: the formula, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from pliant.ops._averaging import average_of_grid


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    Ph: int,
    Pw: int,
    scale: float,
    ratio: int,
    gamma: float,
) -> Tensor:
    """Compute RoIAlign with every bin moved by ``gamma·(width, height)·offset``, and multiply it by its mask.

    Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
    """
    output = average_of_grid(input, rois, offset, (Ph, Pw), scale, ratio, gamma, True, (1, 1))
    if mask is not None:
        output = output * mask.to(output.dtype)
    return output.to(input.dtype)
