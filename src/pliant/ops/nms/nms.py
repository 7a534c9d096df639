"""Non-maximum suppression: the public functions, their checks, and the declaration. It has no gradient."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.nms import reference

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, implementation: str = "auto") -> Tensor:
    """Keep the boxes that no better kept box overlaps by more than a threshold.

    Boxes are visited by descending score, equal scores by ascending index. A box is kept unless a box kept before it
    has ``IoU = |a∩b| / (|a| + |b| − |a∩b|) > iou_threshold`` with it. This is exact: no box is left out in advance.

    At the edges: ``|a| = (x2 − x1)·(y2 − y1)``. An IoU of 0/0 and every IoU with a NaN in it is above no threshold: a
    box with a NaN coordinate, of infinite area, or inverted, suppresses nothing and is never suppressed, and neither
    is one of zero area. A NaN score counts as −∞. IoUs are float32 (float64 for float64 boxes), whatever the storage
    type.

    Args:
        boxes: (n, 4), ``x1 y1 x2 y2`` in any unit.
        scores: (n,), any of the floating dtypes.
        iou_threshold: largest IoU that two kept boxes may have, 0 to 1.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (kept,) int64, indices into `boxes` by descending score. It has no gradient. Its size depends on the values:
        ``torch.compile(fullgraph=True)`` needs ``torch._dynamo.config.capture_dynamic_output_shape_ops``.

    Raises:
        TypeError: `boxes` or `scores` is not a tensor of float32, float64, bfloat16 or float16, `iou_threshold` not a
            number.
        ValueError: a shape does not fit, tensors are on different devices or on the meta device, a threshold outside
            0 to 1.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: torchvision.ops.nms, whose results these are; greedy suppression as in Girshick et al., CVPR 2014, section
    2.2.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10]])
    >>> nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)
    tensor([1, 2])
    """
    if has_torch_function_variadic(boxes, scores):
        return _declare.handed_over(nms, locals())
    return _suppress("nms", boxes, scores, None, iou_threshold, implementation)


def batched_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, *, implementation: str = "auto"
) -> Tensor:
    """Suppress as :func:`nms` does, within each class: boxes of different classes do not suppress each other.

    The result is that of :func:`nms` on the boxes of each class, merged by descending score, bit for bit: coordinates
    are not shifted by class, which would cost them precision.

    At the edges the operator follows :func:`nms`.

    Args:
        boxes: (n, 4), ``x1 y1 x2 y2`` in any unit.
        scores: (n,), any of the floating dtypes.
        classes: (n,), integers: labels, or anything else within which boxes compete, such as image indices.
        iou_threshold: largest IoU that two kept boxes of one class may have, 0 to 1.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (kept,) int64, indices into `boxes` by descending score, equal scores by ascending index. It has no gradient.

    Raises:
        TypeError: as :func:`nms`, or `classes` is not a tensor of integers.
        ValueError: as :func:`nms`.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: torchvision.ops.batched_nms.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10]])
    >>> batched_nms(boxes, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([3, 1, 1]), 0.5)
    tensor([1, 2, 0])
    """
    if has_torch_function_variadic(boxes, scores, classes):
        return _declare.handed_over(batched_nms, locals())
    _check.tensors("batched_nms", classes=classes)
    return _suppress("batched_nms", boxes, scores, classes, iou_threshold, implementation)


def _suppress(
    op: str, boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, implementation: str
) -> Tensor:
    _check.tensors(op, boxes=boxes, scores=scores)
    if not isinstance(iou_threshold, int | float | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{op}: iou_threshold must be a number, got {iou_threshold!r}")
    # Written so that NaN fails.
    if not (iou_threshold >= 0 and iou_threshold <= 1):
        raise ValueError(f"{op}: iou_threshold must lie between 0 and 1, got {float(iou_threshold)}")
    _check_tensors(op, boxes, scores, classes)
    if boxes.requires_grad or scores.requires_grad:
        boxes, scores = boxes.detach(), scores.detach()
    if boxes.device.type == "meta":
        raise ValueError(f"{op}: boxes are on the meta device, and how many are kept depends on their values")
    if classes is not None:
        classes = classes.to(torch.int64)
    return _run(implementation, boxes, scores, classes, float(iou_threshold), called=op)


def _check_tensors(op: str, boxes: Tensor, scores: Tensor, classes: Tensor | None) -> None:
    _check.rank(op, "boxes", boxes, "n 4")
    n, _ = boxes.shape
    _check.shape(op, "boxes", boxes, "(n, 4)", (n, 4))
    _check.shape(op, "scores", scores, "(n,)", (n,))
    if classes is not None:
        _check.shape(op, "classes", classes, "(n,)", (n,))
        _check.dtype(op, "classes", classes, _INTEGERS)
    _check.device(op, "boxes", boxes, scores=scores, classes=classes)
    _check.dtype(op, "boxes", boxes)
    _check.dtype(op, "scores", scores)


def _shape(*arguments: object) -> tuple[int, ...]:
    """Return (): the number of boxes kept depends on their values, and the public functions check."""
    return ()


def _fake(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> Tensor:
    _check_tensors("nms", boxes, scores, classes)
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _triton() -> ModuleType:
    from pliant.ops.nms import triton

    return triton


_run = _declare.declare(
    "nms",
    "Tensor boxes, Tensor scores, Tensor? classes, float iou_threshold",
    _shape,
    reference.nms,
    _triton,
    lowered=(),
    also=("batched_nms",),
    fake=_fake,
)
