"""RoI max pooling: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.roi import checks
from pliant.ops.roi.reference import bins

_OP = "roi_pool"


def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Take the maximum of the map over the bins of every box, where bins consist of whole pixels.

    ``y[r,c,ph,pw] = max x[n(r),c,i,j]`` over rows ``floor(ph·h/Ph) ≤ i − top < ceil((ph + 1)·h/Ph)``, columns likewise,
    with ``top = round(y1·spatial_scale)`` and ``h = max(round(y2·spatial_scale) − top + 1, 1)``; round is C's, half
    away from zero. The gradient goes to the pixel of the maximum, of equal ones to the first in row-major order.

    At the edges: pixels outside the map are left out, and a bin without pixels is 0 and has no gradient. An inverted
    box is one pixel large. Boxes with a NaN or infinite coordinate give 0 and no gradient. A NaN in a bin is its
    maximum. No gradient flows into `boxes`. Boxes are placed in float32 (float64 for float64 input). Under autocast,
    input is cast to the low precision.

    Args:
        input: (N, C, H, W), the map, H·W < 2³¹; channels_last is kept, without copies.
        boxes: (R, 5), image index and ``x1 y1 x2 y2`` in pixels of the image; or a list of (n, 4), one per image.
            float32 or input's dtype.
        output_size: Ph, Pw, bins.
        spatial_scale: pixels of the map per pixel of the image.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (R, C, Ph, Pw) in input's dtype, differentiable in input; the backward is deterministic bit for bit, for any
        number of threads.

    Raises:
        TypeError: input's dtype is unsupported, or that of `boxes` is neither float32 nor input's.
        ValueError: a shape does not fit, tensors are on different devices, or (on the CPU, outside of torch.compile)
            an image index is out of range; elsewhere such a box gives zeros and no gradient.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Girshick, "Fast R-CNN", ICCV 2015, section 2.1. Arguments of torchvision.ops.roi_pool.

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> roi_pool(x, [torch.tensor([[0.0, 0.0, 2.0, 3.0]])], 2)[0, 0]
    tensor([[ 5.,  6.],
            [13., 14.]])
    """
    if has_torch_function_variadic(input, boxes):
        return _declare.handed_over(roi_pool, locals())
    rois = checks.boxes(_OP, "boxes", boxes, input)
    size = _check.pair(_OP, "output_size", output_size, 1)
    return _run(implementation, input, rois, size, float(spatial_scale))


def _shape(input: Tensor, rois: Tensor, output_size: Sequence[int], *rest: object) -> tuple[int, ...]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    checks.check_map(_OP, "boxes", input, rois)
    H, W = input.shape[2:]
    if H * W >= 2**31:
        raise ValueError(f"{_OP}: input must have fewer than 2³¹ pixels, got {int(H)}×{int(W)}")
    return rois.shape[0], input.shape[1], *_check.pair(_OP, "output_size", output_size, 1)


def _read_taken(
    above: Tensor,
    input_size: Sequence[int],
    channels_last: bool,
    rois: Tensor,
    output_size: Sequence[int],
    scale: float,
    taken: Tensor,
) -> Tensor:
    """Read where backward writes: backward is linear in its gradient, and this is its transpose."""
    N, C, H, W = input_size
    # Where nothing was taken the image may not exist: the first pixel is read instead, and dropped.
    image = torch.where((taken >= 0).flatten(1).any(1), rois[:, 0], 0).long().view(-1, 1, 1, 1)
    index = (image * (H * W) + taken.clamp(min=0)).transpose(0, 1)
    table = above.transpose(0, 1).reshape(C, N * H * W)
    read = table.gather(1, index.flatten(1)).view(index.shape).transpose(0, 1)
    return torch.where(taken < 0, 0, read)


def _triton() -> ModuleType:
    from pliant.ops.roi.triton import bins as kernels

    return kernels


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor rois, SymInt[] output_size, float spatial_scale",
    _shape,
    bins.roi_pool,
    _triton,
    gradients=("input",),
    forgotten="input",
    # The pixel that every output came from, y·W + x, or −1.
    extra=_declare.Extra("taken", torch.int32),
    linear=_read_taken,
)
