"""The Triton kernels for bins of whole pixels compile for real GPUs, and no register is spilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.ops.gpu.launch import Launch
from pliant.ops.roi.triton import bins as triton

KERNELS = ("maxima", "maxima back", "averages", "averages back", "maxima back in integers", "averages back in integers")


def _launch(kernel: str, dtype: torch.dtype) -> Launch:
    """Return a launch on tensors without memory: the head of a detector, or R-FCN's score maps of 21 classes."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    maxima, back, integers = "maxima" in kernel, "back" in kernel, "integers" in kernel
    R, C = 512, 256 if maxima else 21
    rois = empty(R, 5, dtype=torch.float32)
    channels = C if maxima else 49 * C
    sums = empty(1, 50, 84, channels, dtype=torch.int64 if integers else torch.float32)
    unit = rois if integers else None
    if maxima and back:
        taken = empty(R, C, 7, 7, dtype=torch.int32)
        return triton.back_launch(empty(R, C, 7, 7), rois, taken, sums.permute(0, 3, 1, 2), False, unit)
    map = sums if back else empty(1, 50, 84, channels)
    taken = empty(R, 49, C, dtype=torch.int32) if maxima else None
    return triton.launch(map, rois, empty(R, 49, C), taken, (7, 7), 1 / 16, back, unit)


SLOW = pytest.mark.slow
ROWS = [
    pytest.param(
        architecture, kernel, dtype, marks=() if dtype == torch.bfloat16 and i < 4 and architecture == "sm_90" else SLOW
    )
    for architecture in ("sm_80", "sm_90")
    for i, kernel in enumerate(KERNELS)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("architecture", "kernel", "dtype"), ROWS)
def test_no_register_is_spilled(
    compiled: Callable[..., Any], architecture: str, kernel: str, dtype: torch.dtype
) -> None:
    found = compiled(_launch(kernel, dtype), architecture)
    assert found.spilled == 0, found.registers
    if kernel in ("maxima", "averages", "averages back"):
        # Bins are to be those of the reference: nothing is fused, nothing divided approximately.
        assert "fma.rn" not in found.assembly
        assert "div.rn.f32" in found.assembly


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ["sm_100", "gfx942", "gfx1100"])
def test_every_architecture(compiled: Callable[..., Any], architecture: str, kernel: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compiled(_launch(kernel, dtype), architecture)
