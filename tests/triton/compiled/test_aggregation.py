"""The Triton kernels of attention, DCNv3 and DCNv4 compile for real GPUs, and no register is spilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.ops.aggregation import triton
from pliant.ops.gpu.launch import Launch
from pliant.testing import DCN_SPEED, MS_DEFORM_ATTN_SPEED

ENCODER, STAGE = MS_DEFORM_ATTN_SPEED[0], DCN_SPEED[0]
KERNELS = ("forward", "backward", "backward of the map", "backward in integers")


def _launch(op: str, dtype: torch.dtype, kernel: str) -> Launch:
    """Return a launch on tensors without memory."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if op == "ms_deform_attn":
        N, S, M, D = ENCODER.input
        Q, L, P = ENCODER.queries, len(ENCODER.shapes), ENCODER.points
        sizes, starts = [n for shape in ENCODER.shapes for n in shape], [0, 13400, 16750, 17600]
        beside = (empty(N, Q, M, L, P, 2, dtype=torch.float32), empty(N, Q, M, L, P, dtype=torch.float32))
        problem = triton.attention(empty(N, S, M, D), sizes, starts, *beside, (), False)
        output = empty(N, Q, M * D)
    else:
        N, H, W, C = STAGE.input
        G, K = STAGE.groups, 9
        packed = empty(N, H, W, -(-G * K * 3 // 8) * 8)
        beside = (packed, None) if op == "dcnv4" else (empty(N, H, W, G * K * 2), empty(N, H, W, G * K))
        problem = triton.convolution(empty(N, H, W, C), *beside, (3, 3), (1, 1), (1, 1), (1, 1), G, 1.0, False)
        output = empty(N, H, W, C)
    if kernel == "forward":
        return triton.forward_launch(problem, output)
    integers = kernel == "backward in integers"
    sums = empty(*problem.map.shape, dtype=torch.int64 if integers else torch.float32)
    samples = (problem.places.tensor, problem.factors.tensor) if kernel == "backward" else (None, None)
    return triton.backward_launch(problem, output, sums, sums if integers else None, *samples)


# With every change attention in one low precision; the rest is marked slow.
def _rows() -> list[Any]:
    some = {("sm_90", "ms_deform_attn", torch.bfloat16, kernel) for kernel in KERNELS[:2]}
    rows = [
        (architecture, op, dtype, kernel)
        for architecture in ("sm_80", "sm_90")
        for op in ("ms_deform_attn", "dcnv3", "dcnv4")
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for kernel in KERNELS
    ]
    return [pytest.param(*row, marks=() if row in some else pytest.mark.slow) for row in rows]


@pytest.mark.parametrize(("architecture", "op", "dtype", "kernel"), _rows())
def test_no_register_is_spilled(
    compiled: Callable[..., Any], architecture: str, op: str, dtype: torch.dtype, kernel: str
) -> None:
    found = compiled(_launch(op, dtype, kernel), architecture)
    assert found.spilled == 0, found.registers
    # Which pixel a discrete sample takes is decided as in the reference: nothing is fused.
    assert "fma.rn" not in found.assembly


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ["sm_100", "gfx942", "gfx1100"])
def test_everything_compiles(compiled: Callable[..., Any], architecture: str, kernel: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compiled(_launch("ms_deform_attn", dtype, kernel), architecture)
