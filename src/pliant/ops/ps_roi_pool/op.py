"""Position-sensitive RoI pooling: the public function, and what torch must know about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant import _check, _native
from pliant.ops import _roi
from pliant.ops.ps_roi_pool import reference

_OP = "ps_roi_pool"


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Average the map over the bins of every box, bins of whole pixels, each bin in channels of its own.

    ``y[r,c,ph,pw] = mean x[n(r), (c·Ph + ph)·Pw + pw, i, j]`` over rows
    ``floor(ph·h/Ph) ≤ i − top < ceil((ph + 1)·h/Ph)`` and columns alike, with ``top = round(y1·spatial_scale)`` and
    ``h = max(round(y2·spatial_scale) − top, 1)``; round is C's, half away from zero.

    At the edges: pixels outside the map are left out and not counted, and a bin without pixels is 0. The last row and
    column of the map belong to it; the forward of torchvision leaves them out, its backward does not. An inverted box
    is one pixel large. Boxes with a NaN or infinite coordinate give 0 and no gradient. No gradient flows into `boxes`.
    Boxes are placed and sums are taken in float32 (float64 for float64 input). Under autocast input runs in the low
    precision.

    Args:
        input: (N, C, H, W), the map; Ph·Pw divides C.
        boxes: (R, 5), image index and ``x1 y1 x2 y2`` in pixels of the image; or a list of (n, 4), one for each image.
            float32 or input's dtype.
        output_size: Ph, Pw, bins.
        spatial_scale: pixels of the map for one pixel of the image.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (R, C/(Ph·Pw), Ph, Pw) in input's dtype, differentiable in input; the backward is deterministic bit for bit,
        for any number of threads.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape does not fit, tensors are on different devices, or (on the CPU, outside of torch.compile)
            an image index is out of range; elsewhere such a box gives zeros and no gradient.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Dai et al., "R-FCN", NeurIPS 2016, equation 1. Arguments of torchvision.ops.ps_roi_pool.

    >>> x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 4)
    >>> ps_roi_pool(x, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2)[0, 0]
    tensor([[0., 1.],
            [2., 3.]])
    """
    _check.tensors(_OP, input=input)
    (cast_input,) = _check.autocast(input)
    assert cast_input is not None
    input = cast_input
    rois = _roi.boxes(_OP, "boxes", boxes, input)
    size = _check.pair(_OP, "output_size", output_size, 1)
    _check_tensors(input, rois, *size)
    _roi.check_images(_OP, "boxes", input, rois)
    if not _native.chosen(_OP, implementation, input):
        result = reference.ps_roi_pool(input, rois, size, float(spatial_scale))
        return result.contiguous(memory_format=torch._prims_common.suggest_memory_format(input))
    output: Tensor = torch.ops.pliant.ps_roi_pool(input, rois, *size, float(spatial_scale))
    return output


def _check_tensors(input: Tensor, rois: Tensor, Ph: int, Pw: int) -> None:
    """Raise unless the tensors fit each other."""
    _roi.check_map(_OP, "boxes", input, rois)
    C = input.shape[1]
    if C % (Ph * Pw) != 0:
        raise ValueError(
            f"{_OP}: the {int(Ph)}×{int(Pw)} bins take turns, {int(Ph * Pw)} must divide the {int(C)} channels of input"
        )


# What torch must know: schema, fake kernels, autograd. The CPU kernels are in csrc/ps_roi_pool.cpp.

_native.library.define(f"{_OP}(Tensor input, Tensor rois, SymInt Ph, SymInt Pw, float scale) -> Tensor")
_native.library.define(
    f"{_OP}_backward(Tensor grad, Tensor rois, SymInt N, SymInt H, SymInt W, float scale, bool channels_last) -> Tensor"
)


@torch.library.register_fake(f"pliant::{_OP}", lib=_native.library)
def _fake(input: Tensor, rois: Tensor, Ph: int, Pw: int, scale: float) -> Tensor:
    _check_tensors(input, rois, Ph, Pw)
    result = input.new_empty((rois.shape[0], input.shape[1] // (Ph * Pw), Ph, Pw))
    return result.to(memory_format=torch._prims_common.suggest_memory_format(input))


@torch.library.register_fake(f"pliant::{_OP}_backward", lib=_native.library)
def _fake_backward(grad: Tensor, rois: Tensor, N: int, H: int, W: int, scale: float, channels_last: bool) -> Tensor:
    _, C, Ph, Pw = grad.shape
    format = torch.channels_last if channels_last else torch.contiguous_format
    return grad.new_empty((N, C * Ph * Pw, H, W)).to(memory_format=format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # The map itself is not kept: the operator is linear.
    input, rois, _, _, scale = inputs
    ctx.save_for_backward(rois)
    N, _, H, W = input.shape
    last = torch._prims_common.suggest_memory_format(input) == torch.channels_last
    ctx.shape = (N, H, W, scale, last)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    back = torch.ops.pliant.ps_roi_pool_backward(grad, rois, *ctx.shape) if ctx.needs_input_grad[0] else None
    return (back, None, None, None, None)


def _setup_context_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, rois, *_, ctx.scale, _ = inputs
    ctx.save_for_backward(rois)
    ctx.size = grad.shape[2:]


def _backward_twice(ctx: Any, wanted: Tensor) -> tuple[Tensor | None, ...]:
    """Pool again: the backward is the transpose of the forward, and this is the transpose of the backward."""
    (rois,) = ctx.saved_tensors
    return (torch.ops.pliant.ps_roi_pool(wanted, rois, *ctx.size, ctx.scale), *[None] * 6)


torch.library.register_autograd(f"pliant::{_OP}", _backward, setup_context=_setup_context, lib=_native.library)
torch.library.register_autograd(
    f"pliant::{_OP}_backward", _backward_twice, setup_context=_setup_context_twice, lib=_native.library
)


# GPUs. Triton is imported by the first call.


def _on_gpu(*arguments: Any) -> Tensor:
    from pliant.ops import _bins_triton

    return _bins_triton.ps_roi_pool(*arguments)


def _on_gpu_backward(*arguments: Any) -> Tensor:
    from pliant.ops import _bins_triton

    return _bins_triton.ps_roi_pool_backward(*arguments)


_native.on_gpu(_OP, _on_gpu)
_native.on_gpu(f"{_OP}_backward", _on_gpu_backward)
