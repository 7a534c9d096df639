"""The Triton kernels of the RoI averages compile for real GPUs, and no register is spilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.ops.gpu.launch import Launch
from pliant.ops.roi.triton import averages as triton
from pliant.testing import ROI_SPEED, RoICase

# The RoI head of a detector, and the score maps of R-FCN with 21 classes.
HEAD = ROI_SPEED[0]
MAPS = RoICase("R-FCN", (1, 21 * 49, 50, 84), 300, (7, 7), 1 / 16, group_size=7, part_size=7, classes=21)
KERNELS = ("forward", "backward", "backward of the input", "backward in integers")


def _launch(op: str, dtype: torch.dtype, kernel: str) -> Launch:
    """Return a launch on tensors without memory."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    case = HEAD if op == "deform_roi_pool" else MAPS
    (Ph, Pw), R, scale = case.output_size, case.rois, case.spatial_scale
    tensors, mask = (empty(*case.input), empty(R, 5, dtype=torch.float32)), empty(R, 1, Ph, Pw)
    offset = empty(R, 2 * case.classes, case.part_size, case.part_size) if case is MAPS else empty(R, 2, Ph, Pw)
    pool = triton.POOLS[op](
        *tensors,
        *{
            "deform_roi_pool": (offset, (Ph, Pw), scale, 2, 0.1, mask),
            "deform_psroi_pool": (offset, Ph, scale, 7, 7, 4, 0.1, mask),
            "roi_align": ((Ph, Pw), scale, 0, True),
            "ps_roi_align": ((Ph, Pw), scale, 0),
        }[op],
    )
    output = empty(R, pool.outputs, Ph, Pw).contiguous(memory_format=torch.channels_last)
    if kernel == "forward":
        return triton.forward_launch(pool, output)
    integers = kernel == "backward in integers"
    sums = empty(*pool.map.shape, dtype=torch.int64 if integers else torch.float32)
    moves = empty(R, pool.classes, 2, pool.P, dtype=torch.float32) if kernel == "backward" else None
    averages = empty(R, pool.classes, pool.P, dtype=torch.float32) if kernel == "backward" else None
    return triton.backward_launch(pool, output, sums, sums if integers else None, moves, averages)


# With every change the operators with offsets; the rest is marked slow.
def _rows() -> list[Any]:
    rows = [
        (architecture, op, dtype, kernel)
        for architecture in ("sm_80", "sm_90")
        for op in triton.POOLS
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for kernel in KERNELS
        if op.startswith("deform") or kernel != "backward"
    ]
    quick = {(op, torch.bfloat16, kernel) for op in ("deform_roi_pool", "deform_psroi_pool") for kernel in KERNELS[:2]}
    quick |= {("deform_roi_pool", torch.float32, kernel) for kernel in KERNELS[:2]}
    some = {("sm_80", "deform_roi_pool", torch.bfloat16, kernel) for kernel in KERNELS[:2]}
    some |= {("sm_90", *row) for row in quick}
    return [pytest.param(*row, marks=() if row in some else pytest.mark.slow) for row in rows]


@pytest.mark.parametrize(("architecture", "op", "dtype", "kernel"), _rows())
def test_no_register_is_spilled(
    compiled: Callable[..., Any], architecture: str, op: str, dtype: torch.dtype, kernel: str
) -> None:
    found = compiled(_launch(op, dtype, kernel), architecture)
    assert found.spilled == 0, found.registers
    # Positions are to be those of the reference: nothing is fused, nothing divided approximately.
    assert "fma.rn" not in found.assembly
    assert "div.rn.f32" in found.assembly


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ["sm_100", "gfx942", "gfx1100"])
def test_everything_compiles(compiled: Callable[..., Any], architecture: str, kernel: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compiled(_launch("deform_roi_pool", dtype, kernel), architecture)


def test_channels_are_loaded_16_bytes_at_a_time(compiled: Callable[..., Any]) -> None:
    loads = [
        line
        for line in compiled(_launch("deform_roi_pool", torch.bfloat16, "forward"), "sm_90").assembly.splitlines()
        if "ld.global" in line
    ]
    # Four corners; boxes, offsets and masks come one at a time.
    assert sum("v4.b32" in line for line in loads) >= 4
