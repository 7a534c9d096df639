"""The Triton kernels of LRN and of non-maximum suppression compile for real GPUs, and no register is spilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pliant.ops.gpu.launch import Launch
from pliant.ops.local_response_norm import triton as lrn
from pliant.ops.nms import triton as nms
from pliant.testing import LRN_SPEED, NMS_SPEED, NMSCase

NORMS = {case.name: case for case in LRN_SPEED}


def _norm(name: str, dtype: torch.dtype, channels_last: bool, backward: bool) -> Launch:
    x = torch.empty(NORMS[name].input, dtype=dtype, device="meta")
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    (launch,) = lrn.launches(x if backward else None, x, x, 1, 2, 2, False, 1e-4, 0.75, 2.0)
    return launch


NORM_ROWS = [
    (architecture, name, dtype, last, backward)
    for architecture in ("sm_80", "sm_90")
    for name in ("A1", "A2")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for last in (False, True)
    for backward in (False, True)
]


@pytest.mark.parametrize(
    ("architecture", "name", "dtype", "channels_last", "backward"),
    [
        pytest.param(*row, marks=() if row[:3] == ("sm_90", "A2", torch.bfloat16) else pytest.mark.slow)
        for row in NORM_ROWS
    ],
)
def test_local_response_norm(
    compiled: Callable[..., Any], architecture: str, name: str, dtype: torch.dtype, channels_last: bool, backward: bool
) -> None:
    found = compiled(_norm(name, dtype, channels_last, backward), architecture)
    assert found.spilled == 0, found.registers


@pytest.mark.parametrize("architecture", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])
@pytest.mark.parametrize(
    "case",
    [NMS_SPEED[0], *(pytest.param(case, marks=pytest.mark.slow) for case in NMS_SPEED[1:])],
    ids=lambda case: case.name,
)
def test_nms(compiled: Callable[..., Any], architecture: str, case: NMSCase) -> None:
    boxes = torch.empty(case.boxes, 4, device="meta")
    classes = torch.empty(case.boxes, dtype=torch.int64, device="meta")
    kept = torch.empty(case.boxes, dtype=torch.int8, device="meta")
    pairs, sweep = nms.launches(boxes, classes, kept, 0.5)
    found = compiled(pairs, architecture)
    assert found.spilled == 0, found.registers
    # IoUs on the threshold are to stay there: nothing is fused, nothing divided approximately.
    assert "fma.rn" not in found.assembly
    assert "div.rn.f32" in found.assembly
    assert compiled(sweep, architecture).spilled == 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_100", "gfx942", "gfx1100"])
def test_every_architecture(compiled: Callable[..., Any], architecture: str) -> None:
    for backward in (False, True):
        compiled(_norm("A1", torch.bfloat16, False, backward), architecture)
    boxes, kept = torch.empty(2000, 4, device="meta"), torch.empty(2000, dtype=torch.int8, device="meta")
    for launch in nms.launches(boxes, None, kept, 0.5):
        compiled(launch, architecture)
