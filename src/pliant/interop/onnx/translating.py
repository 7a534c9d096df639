"""Translate our operators to ONNX's: the functions that the exporter calls for the nodes of a rewritten program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import pliant.ops  # noqa: F401 - declares the operators

ROIS = (torch.ops.pliant.roi_align.default, torch.ops.pliant.roi_pool.default)


def table(opset: int) -> dict[Any, Callable[..., Any]]:
    """Return the translation of every operator of ours that a rewritten program may have."""
    import onnxscript

    op = onnxscript.values.Opset("", opset)
    ours = torch.ops.pliant

    def integers(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def deform_conv2d(
        input: Any,
        offset: Any,
        weight: Any,
        bias: Any,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        mask: Any,
        clamp: bool,
    ) -> Any:
        assert not clamp, "the program was not rewritten"
        _, Cg, Kh, Kw = (int(n) for n in weight.shape)
        return op.DeformConv(
            input,
            weight,
            offset,
            bias,
            mask,
            dilations=list(dilation),
            group=int(input.shape[1]) // Cg,
            kernel_shape=[Kh, Kw],
            offset_group=int(offset.shape[1]) // (2 * Kh * Kw),
            pads=[*padding, *padding],
            strides=list(stride),
        )

    def local_response_norm(
        input: Any, dim: int, before: int, after: int, spatial: bool, a: float, beta: float, k: float
    ) -> Any:
        size = before + after + 1
        return op.LRN(input, alpha=a * size, beta=beta, bias=k, size=size)

    def roi_align(input: Any, rois: Any, output_size: Sequence[int], scale: float, ratio: int, aligned: bool) -> Any:
        image = op.Squeeze(op.Slice(rois, integers(0), integers(1), integers(1)), integers(1))
        boxes = op.Slice(rois, integers(1), integers(5), integers(1))
        return op.RoiAlign(
            input,
            op.CastLike(boxes, input),
            op.Cast(image, to=7),  # int64
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
            output_height=output_size[0],
            output_width=output_size[1],
            sampling_ratio=max(ratio, 0),
            spatial_scale=scale,
        )

    def roi_pool(input: Any, rois: Any, output_size: Sequence[int], scale: float) -> Any:
        # The second output, the position of each maximum, is read by the backward alone.
        output = op.MaxRoiPool(input, op.CastLike(rois, input), pooled_shape=list(output_size), spatial_scale=scale)
        return output, op.Identity(output)

    def nms(boxes: Any, scores: Any, classes: Any, iou_threshold: float) -> Any:
        # One row of scores per class: boxes of other classes get a score below the threshold.
        if classes is None:
            table = op.Unsqueeze(scores, integers(0, 1))
        else:
            _, _, index, _ = op.Unique(classes, sorted=1)
            last = op.ReduceMax(index, keepdims=0)
            every = op.Range(op.Constant(value_int=0), op.Add(last, op.Constant(value_int=1)), op.Constant(value_int=1))
            same = op.Equal(op.Unsqueeze(every, integers(1)), op.Unsqueeze(index, integers(0)))
            lowest = op.Constant(value_float=float("-inf"))
            table = op.Unsqueeze(op.Where(same, scores, op.CastLike(lowest, scores)), integers(0))
        kept = op.NonMaxSuppression(
            op.Unsqueeze(boxes, integers(0)),
            table,
            op.Shape(scores),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[-3.4028234663852886e38]),
        )
        kept = op.Squeeze(op.Slice(kept, integers(2), integers(3), integers(1)), integers(1))
        # Sorted by ascending index, then by descending score: TopK keeps the order of equal scores.
        count = op.Shape(kept)
        kept, _ = op.TopK(kept, count, axis=0, largest=0, sorted=1)
        _, order = op.TopK(op.Gather(scores, kept), count, axis=0, largest=1, sorted=1)
        return op.Gather(kept, order)

    named: dict[str, Callable[..., Any]] = {
        "deform_conv2d": deform_conv2d,
        "local_response_norm": local_response_norm,
        "roi_align": roi_align,
        "roi_pool": roi_pool,
        "nms": nms,
    }
    return {getattr(ours, name).default: function for name, function in named.items()}
