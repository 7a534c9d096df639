"""Non-maximum suppression keeps the right boxes, all of them and in the right order."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pliant.ops import batched_nms, nms
from pliant.testing import NMS_CASES, TOLERANCE, NMSCase

Operator = Callable[..., Tensor]
BY_NAME = {case.name: case for case in NMS_CASES}
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
case_of = pytest.mark.parametrize("case", NMS_CASES, ids=lambda case: case.name)


def one_by_one(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Suppress with Python loops and NumPy's scalars of the boxes' own precision."""
    real = np.float64 if boxes.dtype == torch.float64 else np.float32
    rows = [[real(v) for v in row] for row in boxes.double().tolist()]
    order = sorted(range(len(rows)), key=lambda i: (-scores[i].item(), i))
    kept: list[int] = []
    for i in order:
        a = rows[i]
        for j in kept:
            b = rows[j]
            width = max(real(0), min(a[2], b[2]) - max(a[0], b[0]))
            height = max(real(0), min(a[3], b[3]) - max(a[1], b[1]))
            common = width * height
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
            if union != 0 and float(common / union) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@case_of
def test_equals_one_box_at_a_time(suppress: Operator, case: NMSCase, dtype: torch.dtype, threshold: float) -> None:
    t = case.tensors(dtype)
    kept = suppress(t["boxes"], t["scores"], threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == one_by_one(t["boxes"], t["scores"], threshold)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_on_a_grid_where_many_overlaps_are_the_threshold(
    suppress: Operator, dtype: torch.dtype, threshold: float
) -> None:
    random = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 12, (400, 2), generator=random)
    boxes = torch.cat([corner, corner + torch.randint(0, 11, (400, 2), generator=random)], 1).to(dtype)
    scores = torch.randint(0, 5, (400,), generator=random).to(dtype)
    assert suppress(boxes, scores, threshold).tolist() == one_by_one(boxes, scores, threshold)


def test_the_threshold_is_not_rounded_to_the_precision_of_the_boxes(suppress: Operator) -> None:
    # An IoU of 1/10 is larger than 0.1 in float32 and equal to it in float64; one of 7/10 is smaller and equal.
    scores = torch.tensor([1.0, 0.5])
    for common, threshold, kept in ((1, 0.1, [0]), (7, 0.7, [0, 1])):
        boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, common, 1]])
        assert suppress(boxes, scores, threshold).tolist() == kept
        assert suppress(boxes.double(), scores, threshold).tolist() == [0, 1]


def test_thresholds_zero_and_one(suppress: Operator) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [2, 0, 4, 2], [1.99, 0, 4, 2]])
    scores = torch.tensor([4.0, 3, 2, 1])
    # At 1 nothing is suppressed, equal boxes neither; at 0 whatever shares area is, neighbours are not.
    assert suppress(boxes, scores, 1.0).tolist() == [0, 1, 2, 3]
    assert suppress(boxes, scores, 1).tolist() == [0, 1, 2, 3]
    assert suppress(boxes, scores, 0.0).tolist() == [0, 2]


def test_areas_are_not_fused_with_sums(suppress: Operator) -> None:
    # The IoU of a box with itself is 1 where every product is rounded; a fused one would put it beside.
    random = torch.Generator().manual_seed(3)
    box = 100 * torch.rand(500, 4, generator=random)
    box[:, 2:] += box[:, :2]
    twice = box.repeat_interleave(2, 0)
    twice[:, 0::2] += 1000.0 * torch.arange(500.0).repeat_interleave(2)[:, None]
    scores = torch.rand(1000, generator=random)
    assert len(suppress(twice, scores, 1.0)) == 1000
    assert len(suppress(twice, scores, math.nextafter(1.0, 0.0))) == 500


def test_ties_go_to_the_lower_index(suppress: Operator, suppress_by_class: Operator) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [51, 0, 61, 10]])
    scores = torch.zeros(4)
    scores[1] = -0.0
    assert suppress(boxes, scores, 0.5).tolist() == [0, 2]
    assert suppress_by_class(boxes, scores, torch.tensor([1, 0, 1, 0]), 0.5).tolist() == [0, 1, 2, 3]
    assert suppress(boxes.flip(0), scores, 0.5).tolist() == [0, 2]


def test_a_suppressed_box_suppresses_nothing(suppress: Operator) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert suppress(boxes, torch.tensor([3.0, 2, 1]), 0.4).tolist() == [0, 2]
    assert suppress(boxes, torch.tensor([1.0, 3, 2]), 0.4).tolist() == [1]


# By class.


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@case_of
def test_by_class_is_each_class_alone(
    suppress_by_class: Operator, case: NMSCase, dtype: torch.dtype, threshold: float
) -> None:
    t = case.tensors(dtype)
    expected = []
    for label in t["classes"].unique():
        (own,) = torch.where(t["classes"] == label)
        expected += own[one_by_one(t["boxes"][own], t["scores"][own], threshold)].tolist()
    expected.sort(key=lambda i: (-t["scores"][i].item(), i))
    assert suppress_by_class(**t, iou_threshold=threshold).tolist() == expected


def test_by_class_loses_no_precision(suppress_by_class: Operator) -> None:
    # Shifted apart by class, as is often done, the boxes of class 10⁶ would be rounded to 64 pixels.
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10]]).repeat(3, 1)
    boxes[4:] += 900
    scores, classes = torch.tensor([6.0, 5, 4, 3, 2, 1]), torch.tensor([0, 0, 10**6, 10**6, -5, -5])
    assert suppress_by_class(boxes, scores, classes, 0.4).tolist() == [0, 2, 4]
    assert suppress_by_class(boxes, scores, classes, 0.45).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_integers_of_every_width_are_classes(suppress_by_class: Operator, kind: torch.dtype) -> None:
    t = BY_NAME["dense"].tensors()
    expected = batched_nms(**t, iou_threshold=0.5)
    assert torch.equal(suppress_by_class(**{**t, "classes": t["classes"].to(kind)}, iou_threshold=0.5), expected)


def test_one_class_is_no_class(suppress_by_class: Operator) -> None:
    t = BY_NAME["dense"].tensors()
    t["classes"].fill_(7)
    assert torch.equal(suppress_by_class(**t, iou_threshold=0.5), nms(t["boxes"], t["scores"], 0.5))


# Values that are none.


@pytest.mark.parametrize("place", range(4))
def test_a_box_with_a_nan_is_kept_and_suppresses_nothing(suppress: Operator, place: int) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    boxes[0, place] = boxes[2, place] = math.nan
    assert suppress(boxes, torch.tensor([4.0, 3, 2, 1]), 0.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "box",
    [
        [5, 5, 5, 5],
        [2, 3, 2, 8],
        [8, 2, 2, 8],
        [8, 8, 2, 2],
        [-math.inf, 0, math.inf, 10],
        [0, 0, math.inf, math.inf],
        [math.inf, math.inf, math.inf, math.inf],
        [-3e38, -3e38, 3e38, 3e38],
    ],
    ids=str,
)
def test_boxes_without_a_proper_area_are_kept_and_suppress_nothing(suppress: Operator, box: list[float]) -> None:
    boxes = torch.tensor([box, [0, 0, 10, 10], box, [0, 0, 10, 10]], dtype=torch.float32)
    assert suppress(boxes, torch.tensor([4.0, 3, 2, 1]), 0.0).tolist() == [0, 1, 2]
    assert suppress(boxes, torch.tensor([1.0, 2, 3, 4]), 0.0).tolist() == [3, 2, 0]


def test_kernel_and_reference_agree_on_wild_boxes() -> None:
    random = torch.Generator().manual_seed(5)
    boxes = 10 * torch.randn(3000, 4, generator=random)
    wild = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0, 1e-45])
    where = torch.rand(3000, 4, generator=random) < 0.1
    boxes = torch.where(where, wild[torch.randint(7, (3000, 4), generator=random)], boxes)
    scores = torch.randint(50, (3000,), generator=random).float()
    scores[::9], scores[4::9] = math.nan, -math.inf
    for threshold in (0.0, 0.3, 1.0):
        kept = nms(boxes, scores, threshold, implementation="native")
        assert torch.equal(kept, nms(boxes, scores, threshold, implementation="reference"))
    assert 100 < len(nms(boxes, scores, 0.0)) < 3000


def test_a_nan_score_counts_as_minus_infinity(suppress: Operator, suppress_by_class: Operator) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    scores = torch.tensor([math.nan, -math.inf, 1.0, math.nan])
    assert suppress(boxes, scores, 0.5).tolist() == [2]
    assert suppress(boxes, scores, 1.0).tolist() == [2, 0, 1, 3]
    assert suppress_by_class(boxes, scores, torch.tensor([0, 1, 2, 3]), 0.5).tolist() == [2, 0, 1, 3]
    scores[2] = math.inf
    assert suppress(boxes, scores, 1.0).tolist() == [2, 0, 1, 3]


# Layouts, dtypes, sizes.


def test_any_strides(suppress: Operator, suppress_by_class: Operator) -> None:
    t = BY_NAME["dense"].tensors()
    expected, by_class = nms(t["boxes"], t["scores"], 0.5), batched_nms(**t, iou_threshold=0.5)
    strided = {name: torch.stack([x, x + 1], -1)[..., 0] for name, x in t.items()}
    strided["boxes"] = t["boxes"].T.contiguous().T
    assert torch.equal(suppress(strided["boxes"], strided["scores"], 0.5), expected)
    assert torch.equal(suppress_by_class(**strided, iou_threshold=0.5), by_class)
    assert suppress(t["boxes"], t["scores"][:1].expand(301), 1.0).tolist() == list(range(301))


@pytest.mark.parametrize("scores", TOLERANCE, ids=str)
@pytest.mark.parametrize("boxes", TOLERANCE, ids=str)
def test_boxes_and_scores_have_dtypes_of_their_own(suppress: Operator, boxes: torch.dtype, scores: torch.dtype) -> None:
    t = BY_NAME["dense"].tensors()
    b, s = t["boxes"].to(boxes), t["scores"].to(scores)
    assert suppress(b, s, 0.5).tolist() == one_by_one(b, s, 0.5)


def test_low_precision_computes_in_float32(suppress: Operator) -> None:
    # 600 · 600 is infinite in float16.
    boxes = torch.tensor([[0.0, 0, 600, 600], [50, 0, 650, 600]], dtype=torch.float16)
    assert suppress(boxes, torch.tensor([2.0, 1.0]).half(), 0.8).tolist() == [0]
    with torch.autocast("cpu", torch.bfloat16):
        exact = torch.tensor([[0.0, 0, 1001, 1], [0, 0, 1000, 1]])
        assert suppress(exact, torch.tensor([2.0, 1.0]), 0.9995).tolist() == [0, 1]


def test_nothing_to_differentiate(suppress: Operator) -> None:
    t = BY_NAME["dense"].tensors()
    kept = suppress(t["boxes"].requires_grad_(), t["scores"].requires_grad_(), 0.5)
    assert not kept.requires_grad
    t["boxes"][kept].sum().backward()
    assert t["boxes"].grad.sum() == 4 * len(kept)


def test_same_for_any_number_of_threads() -> None:
    t = NMSCase("", 4000, 300, 37).tensors()
    torch.set_num_threads(1)
    expected = batched_nms(**t, iou_threshold=0.4)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(batched_nms(**t, iou_threshold=0.4), expected)


def test_thousands_of_boxes_by_definition() -> None:
    t = NMSCase("", 8000, 3000).tensors()
    boxes, scores = t["boxes"], t["scores"]
    kept = nms(boxes, scores, 0.5, implementation="native")
    assert 2000 < len(kept) < 7000
    x1, y1, x2, y2 = boxes.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    rank = torch.empty(8000, dtype=torch.int64)
    rank[scores.argsort(stable=True, descending=True)] = torch.arange(8000)
    assert torch.equal(rank[kept], rank[kept].sort()[0])
    covered = torch.zeros(8000, dtype=torch.bool)
    for part in kept.split(500):
        width = (torch.minimum(x2, x2[part, None]) - torch.maximum(x1, x1[part, None])).clamp(min=0)
        height = (torch.minimum(y2, y2[part, None]) - torch.maximum(y1, y1[part, None])).clamp(min=0)
        common = width * height
        covers = common / (area + area[part, None] - common) > 0.5
        covered |= (covers & (rank > rank[part, None])).any(0)
    # A box is kept exactly when no kept box before it covers it.
    assert torch.equal(torch.where(~covered)[0], kept.sort()[0])
