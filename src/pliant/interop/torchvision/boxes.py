"""torchvision's operators on boxes: four forms of RoI pooling, and suppression, with its arguments and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.jit.annotations import BroadcastingList2

from pliant import ops
from pliant.interop._layers import as_runtime_error

Boxes = Tensor | list[Tensor]
Size = int | Sequence[int]


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Average the bins of boxes, as `torchvision.ops.roi_align` does: :func:`pliant.ops.roi_align`.

    Args:
        input: (N, C, H, W). As in torchvision, one image may be quantized per tensor, with boxes (R, 5) that are
            quantized too; the output is then quantized like it.
        boxes: (R, 5), image index and ``x1 y1 x2 y2``, or a list with one (n, 4) per image.
        output_size: bins, an int or a pair.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin in each direction; 0 or less: as many as the bin has pixels, rounded up.
        aligned: shift the boxes by half a pixel.

    Returns:
        (R, C, Ph, Pw).

    Raises:
        AssertionError: `boxes` has neither of these shapes.
        RuntimeError: any other argument does not fit.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _eager("roi_align", input, boxes, output_size, spatial_scale, sampling_ratio, aligned)
    rois = _joined(boxes)
    result: Tensor = torch.ops.pliant.roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned)
    return result


def roi_pool(
    input: Tensor, boxes: Tensor | list[Tensor], output_size: BroadcastingList2[int], spatial_scale: float = 1.0
) -> Tensor:
    """Take the maxima of the bins of boxes: :func:`pliant.ops.roi_pool`; arguments as in :func:`roi_align`."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _eager("roi_pool", input, boxes, output_size, spatial_scale)
    result: Tensor = torch.ops.pliant.roi_pool(input, _joined(boxes), output_size, spatial_scale)[0]
    return result


def ps_roi_align(
    input: Tensor, boxes: Tensor, output_size: int, spatial_scale: float = 1.0, sampling_ratio: int = -1
) -> Tensor:
    """Average each bin in its own channels: :func:`pliant.ops.ps_roi_align`; arguments as in :func:`roi_align`.

    When scripted, it takes a tensor of boxes and an int, as torchvision's does.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _eager("ps_roi_align", input, boxes, output_size, spatial_scale, sampling_ratio)
    size = [output_size, output_size]
    result: Tensor = torch.ops.pliant.ps_roi_align(input, boxes, size, spatial_scale, sampling_ratio)
    return result


def ps_roi_pool(input: Tensor, boxes: Tensor, output_size: int, spatial_scale: float = 1.0) -> Tensor:
    """Average whole pixels, each bin in its own channels: :func:`pliant.ops.ps_roi_pool`.

    Arguments are as in :func:`ps_roi_align`.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _eager("ps_roi_pool", input, boxes, output_size, spatial_scale)
    result: Tensor = torch.ops.pliant.ps_roi_pool(input, boxes, [output_size, output_size], spatial_scale)
    return result


def _eager(name: str, input: Tensor, boxes: Boxes, output_size: Size, *settings: Any) -> Tensor:
    rois = _rois(boxes)
    if name == "roi_align" and input.is_quantized:
        if input.shape[0] != 1:
            raise RuntimeError("Only one image per batch is allowed in roi_align when quantized tensors are passed.")
        found = _eager(name, input.dequantize(), rois.dequantize(), output_size, *settings)
        return torch.quantize_per_tensor(found, input.q_scale(), input.q_zero_point(), input.dtype)
    with as_runtime_error(f"torchvision.ops.{name}"):
        result: Tensor = getattr(ops, name)(input, rois, output_size, *settings)
    return result


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that no better box overlaps: :func:`pliant.ops.nms`.

    Args:
        boxes: (n, 4), ``x1 y1 x2 y2``; as in torchvision, boxes and scores may both be quantized.
        scores: (n,).
        iou_threshold: IoU above which a box is dropped.

    Returns:
        (kept,) int64, by descending score.

    Raises:
        RuntimeError: a shape does not fit; the words are torchvision's.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _nms(boxes, scores, iou_threshold)
    result: Tensor = torch.ops.pliant.nms(boxes.detach(), scores.detach(), None, iou_threshold)
    return result


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    if boxes.dim() != 2:
        raise RuntimeError(f"boxes should be a 2d tensor, got {boxes.dim()}D")
    if boxes.shape[1] != 4:
        raise RuntimeError(f"boxes should have 4 elements in dimension 1, got {boxes.shape[1]}")
    if scores.dim() != 1:
        raise RuntimeError(f"scores should be a 1d tensor, got {scores.dim()}D")
    if len(boxes) != len(scores):
        raise RuntimeError(
            f"boxes and scores should have same number of elements in dimension 0, got: {len(boxes)} and {len(scores)}"
        )
    if boxes.is_quantized:
        boxes, scores = boxes.dequantize(), scores.dequantize()
    with as_runtime_error("torchvision.ops.nms"):
        return ops.nms(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress within classes: :func:`pliant.ops.batched_nms`, which compares classes and shifts no boxes."""
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _batched_nms(boxes, scores, idxs, iou_threshold)
    result: Tensor = torch.ops.pliant.nms(boxes.detach(), scores.detach(), idxs.to(torch.int64), iou_threshold)
    return result


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    with as_runtime_error("torchvision.ops.batched_nms"):
        return ops.batched_nms(boxes, scores, idxs, iou_threshold)


# torch.fx cannot trace through a list of boxes: each function stays one call.
for _name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"):
    torch.fx.wrap(_name)


def _rois(boxes: Boxes) -> Tensor:
    """Return boxes as (R, 5), after torchvision's assertions."""
    if isinstance(boxes, Tensor):
        assert boxes.dim() == 2 and boxes.shape[1] == 5, "The boxes tensor shape is not correct as Tensor[K, 5]"
        return boxes
    assert isinstance(boxes, list | tuple), "boxes is expected to be a Tensor[L, 5] or a List[Tensor[K, 4]]"
    for one in boxes:
        assert one.dim() == 2 and one.shape[1] == 4, (
            "The shape of the tensor in the boxes list is not correct as List[Tensor[L, 4]]"
        )
    return _joined(list(boxes))


def _joined(boxes: Tensor | list[Tensor]) -> Tensor:
    """Return boxes as (R, 5); torch.jit scripts this function, too."""
    if isinstance(boxes, Tensor):
        return boxes
    parts: list[Tensor] = []
    for i in range(len(boxes)):
        parts.append(torch.cat([torch.full_like(boxes[i][:, :1], i), boxes[i]], 1))
    return torch.cat(parts)


class _Pooling(nn.Module):
    """Hold what all four layers have."""

    names: tuple[str, ...] = ("output_size", "spatial_scale")

    def __init__(self, output_size: Any, spatial_scale: float) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in self.names)})"


class RoIAlign(_Pooling):
    """Hold the arguments of :func:`roi_align`."""

    names = (*_Pooling.names, "sampling_ratio", "aligned")

    def __init__(self, output_size: Size, spatial_scale: float, sampling_ratio: int, aligned: bool = False) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)


class RoIPool(_Pooling):
    """Hold the arguments of :func:`roi_pool`."""

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)


class PSRoIAlign(_Pooling):
    """Hold the arguments of :func:`ps_roi_align`."""

    names = (*_Pooling.names, "sampling_ratio")

    def __init__(self, output_size: int, spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)


class PSRoIPool(_Pooling):
    """Hold the arguments of :func:`ps_roi_pool`."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)
