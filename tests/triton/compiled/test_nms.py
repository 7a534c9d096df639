"""The Triton kernels of non-maximum suppression compile for real GPUs, and no register is spilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pliant.ops.nms import triton
from pliant.testing import NMS_SPEED, NMSCase


@pytest.mark.parametrize("architecture", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])
@pytest.mark.parametrize(
    "case",
    [NMS_SPEED[0], *(pytest.param(case, marks=pytest.mark.slow) for case in NMS_SPEED[1:])],
    ids=lambda case: case.name,
)
def test_no_register_is_spilled(compiled: Callable[..., Any], architecture: str, case: NMSCase) -> None:
    boxes = torch.empty(case.boxes, 4, device="meta")
    classes = torch.empty(case.boxes, dtype=torch.int64, device="meta")
    kept = torch.empty(case.boxes, dtype=torch.int8, device="meta")
    pairs, sweep = triton.launches(boxes, classes, kept, 0.5)
    found = compiled(pairs, architecture)
    assert found.spilled == 0, found.registers
    # IoUs on the threshold are to stay there: nothing is fused, nothing divided approximately.
    assert "fma.rn" not in found.assembly
    assert "div.rn.f32" in found.assembly
    assert compiled(sweep, architecture).spilled == 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_100", "gfx942", "gfx1100"])
def test_every_architecture(compiled: Callable[..., Any], architecture: str) -> None:
    boxes, kept = torch.empty(2000, 4, device="meta"), torch.empty(2000, dtype=torch.int8, device="meta")
    for launch in triton.launches(boxes, None, kept, 0.5):
        compiled(launch, architecture)
