"""The Triton kernels of non-maximum suppression keep the right boxes: run by the interpreter, on CPU tensors."""

from __future__ import annotations

import math

import pytest
import torch

from pliant.ops.nms import reference, triton
from pliant.testing import NMS_CASES

# NumPy's word for what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning")


BY_NAME = {case.name: case for case in NMS_CASES}


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        *(pytest.param(name, 0.5, marks=pytest.mark.slow if name == "sparse" else ()) for name in BY_NAME),
        ("one_class", 0.0),
    ],
)
def test_keeps_what_the_reference_keeps(name: str, threshold: float) -> None:
    t = BY_NAME[name].tensors()
    for classes in (None, t["classes"]):
        found = triton.nms(t["boxes"], t["scores"], classes, threshold)
        assert found.dtype == torch.int64
        assert torch.equal(found, reference.nms(t["boxes"], t["scores"], classes, threshold))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype: torch.dtype) -> None:
    t = BY_NAME["one_class"].tensors(dtype)
    found = triton.nms(t["boxes"], t["scores"], t["classes"], 0.3)
    assert torch.equal(found, reference.nms(t["boxes"], t["scores"], t["classes"], 0.3))


def test_ious_on_the_threshold_and_numbers_that_are_none() -> None:
    # IoUs of 1/10 to 9/10, which no float holds, beside thresholds rounded up and down.
    whole = torch.tensor([[0.0, 0, 10, 1]] + [[0.0, 0, i, 1] for i in range(1, 10)])
    scores = torch.arange(10.0, 0.0, -1.0)
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9, 1.0):
        expected = reference.nms(whole, scores, None, threshold)
        assert torch.equal(triton.nms(whole, scores, None, threshold), expected), threshold
    odd = torch.tensor(
        [[0.0, 0, 2, 2], [0, 0, 2, math.nan], [2, 2, 0, 0], [1, 1, 1, 1], [0, 0, math.inf, 2], [0, 0, 2, 2]]
    )
    scores = torch.tensor([1.0, 3, math.nan, 4, 5, -math.inf])
    assert torch.equal(triton.nms(odd, scores, None, 0.5), reference.nms(odd, scores, None, 0.5))


def test_strided_boxes_and_scores() -> None:
    t = BY_NAME["one_class"].tensors()
    boxes, scores = torch.stack([t["boxes"]] * 2, -1)[..., 0], torch.stack([t["scores"]] * 2, -1)[..., 0]
    found = triton.nms(boxes, scores, None, 0.5)
    assert torch.equal(found, reference.nms(t["boxes"], t["scores"], None, 0.5))
