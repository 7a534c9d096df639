"""RoI max pooling: the public function, and what torch must know about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant import _check, _native
from pliant.ops import _roi
from pliant.ops.roi_pool import reference

_OP = "roi_pool"


def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Take the maximum of the map over the bins of every box, bins of whole pixels.

    ``y[r,c,ph,pw] = max x[n(r),c,i,j]`` over rows ``floor(ph·h/Ph) ≤ i − top < ceil((ph + 1)·h/Ph)`` and columns alike,
    with ``top = round(y1·spatial_scale)`` and ``h = max(round(y2·spatial_scale) − top + 1, 1)``; round is C's, half
    away from zero. The gradient goes to the pixel that was taken: of equals the first one, row by row.

    At the edges: pixels outside the map are left out, and a bin without pixels is 0 and has no gradient. An inverted
    box is one pixel large. Boxes with a NaN or infinite coordinate give 0 and no gradient. A NaN in a bin is its
    maximum. No gradient flows into `boxes`. Boxes are placed in float32 (float64 for float64 input). Under autocast
    input runs in the low precision.

    Args:
        input: (N, C, H, W), the map, H·W < 2³¹; channels_last is kept, without copies.
        boxes: (R, 5), image index and ``x1 y1 x2 y2`` in pixels of the image; or a list of (n, 4), one for each image.
            float32 or input's dtype.
        output_size: Ph, Pw, bins.
        spatial_scale: pixels of the map for one pixel of the image.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (R, C, Ph, Pw) in input's dtype, differentiable in input; the backward is deterministic bit for bit, for any
        number of threads.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape does not fit, tensors are on different devices, or (on the CPU, outside of torch.compile)
            an image index is out of range; elsewhere such a box gives zeros and no gradient.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Girshick, "Fast R-CNN", ICCV 2015, section 2.1. Arguments of torchvision.ops.roi_pool.

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> roi_pool(x, [torch.tensor([[0.0, 0.0, 2.0, 3.0]])], 2)[0, 0]
    tensor([[ 5.,  6.],
            [13., 14.]])
    """
    _check.tensors(_OP, input=input)
    (cast_input,) = _check.autocast(input)
    assert cast_input is not None
    input = cast_input
    rois = _roi.boxes(_OP, "boxes", boxes, input)
    size = _check.pair(_OP, "output_size", output_size, 1)
    _check_tensors(input, rois)
    _roi.check_images(_OP, "boxes", input, rois)
    if not _native.chosen(_OP, implementation, input):
        result = reference.roi_pool(input, rois, size, float(spatial_scale))
        return result.contiguous(memory_format=torch._prims_common.suggest_memory_format(input))
    output: Tensor
    output, _ = torch.ops.pliant.roi_pool(input, rois, *size, float(spatial_scale))
    return output


def _check_tensors(input: Tensor, rois: Tensor) -> None:
    """Raise unless the tensors fit each other."""
    _roi.check_map(_OP, "boxes", input, rois)
    H, W = input.shape[2:]
    if H * W >= 2**31:
        raise ValueError(f"{_OP}: input must have fewer than 2³¹ pixels, got {int(H)}×{int(W)}")


# What torch must know: schema, fake kernels, autograd. The CPU kernels are in csrc/roi_pool.cpp.

# `taken` (R, C, Ph, Pw), int32, is the pixel that every output came from, y·W + x, or −1.
_native.library.define(
    f"{_OP}(Tensor input, Tensor rois, SymInt Ph, SymInt Pw, float scale) -> (Tensor output, Tensor taken)"
)
_native.library.define(
    f"{_OP}_backward(Tensor grad, Tensor rois, Tensor taken, SymInt N, SymInt H, SymInt W, bool channels_last)"
    " -> Tensor"
)


@torch.library.register_fake(f"pliant::{_OP}", lib=_native.library)
def _fake(input: Tensor, rois: Tensor, Ph: int, Pw: int, scale: float) -> tuple[Tensor, Tensor]:
    _check_tensors(input, rois)
    R, C = rois.shape[0], input.shape[1]
    output = input.new_empty((R, C, Ph, Pw))
    taken = input.new_empty((R, C, Ph, Pw), dtype=torch.int32)
    return output.to(memory_format=torch._prims_common.suggest_memory_format(input)), taken


@torch.library.register_fake(f"pliant::{_OP}_backward", lib=_native.library)
def _fake_backward(grad: Tensor, rois: Tensor, taken: Tensor, N: int, H: int, W: int, channels_last: bool) -> Tensor:
    format = torch.channels_last if channels_last else torch.contiguous_format
    return grad.new_empty((N, grad.shape[1], H, W)).to(memory_format=format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    # The input is not kept: the backward needs its shape, and which pixels were taken.
    input, rois, *_ = inputs
    ctx.save_for_backward(rois, output[1])
    N, _, H, W = input.shape
    last = torch._prims_common.suggest_memory_format(input) == torch.channels_last
    ctx.shape = (N, H, W, last)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    rois, taken = ctx.saved_tensors
    back = torch.ops.pliant.roi_pool_backward(grad, rois, taken, *ctx.shape) if ctx.needs_input_grad[0] else None
    return (back, None, None, None, None)


def _setup_context_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, rois, taken, *ctx.shape = inputs
    ctx.save_for_backward(rois, taken)


def _backward_twice(ctx: Any, wanted: Tensor) -> tuple[Tensor | None, ...]:
    """Read where the gradient was written: the backward is linear, and so is this."""
    rois, taken = ctx.saved_tensors
    N, C, H, W = wanted.shape
    # Where nothing was taken there may be no such image; the first pixel is read there, and dropped.
    image = torch.where((taken >= 0).flatten(1).any(1), rois[:, 0], 0).long().view(-1, 1, 1, 1)
    index = (image * (H * W) + taken.clamp(min=0)).transpose(0, 1)
    table = wanted.transpose(0, 1).reshape(C, N * H * W)
    read = table.gather(1, index.flatten(1)).view(index.shape).transpose(0, 1)
    return (torch.where(taken < 0, 0, read), *[None] * 6)


torch.library.register_autograd(f"pliant::{_OP}", _backward, setup_context=_setup_context, lib=_native.library)
torch.library.register_autograd(
    f"pliant::{_OP}_backward", _backward_twice, setup_context=_setup_context_twice, lib=_native.library
)


# GPUs. Triton is imported by the first call.


def _on_gpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    from pliant.ops import _bins_triton

    return _bins_triton.roi_pool(*arguments)


def _on_gpu_backward(*arguments: Any) -> Tensor:
    from pliant.ops import _bins_triton

    return _bins_triton.roi_pool_backward(*arguments)


_native.on_gpu(_OP, _on_gpu)
_native.on_gpu(f"{_OP}_backward", _on_gpu_backward)
