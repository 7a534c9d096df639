"""The Triton kernels of deformable convolution compile for real GPUs: matrix instructions, and no register spilled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pliant.ops.conv import triton
from pliant.ops.gpu.launch import Launch
from pliant.testing import DEFORM_CONV_SPEED, DeformConvCase

BY_NAME = {case.name: case for case in DEFORM_CONV_SPEED}
KERNELS = ("forward", "share", "combine", "samples", "samples in integers", "weight")
# How float32 is multiplied, and the dtypes.
PRECISIONS = {"float32": "ieee", "tf32": "tf32", "bfloat16": "ieee", "float16": "ieee"}
# What multiplies matrices on each architecture; float32 as IEEE has it has no such instruction on NVIDIA.
MATRIX = {"sm_80": "mma.sync", "sm_90": "wgmma.mma", "sm_100": "tcgen05.mma", "gfx942": "v_mfma", "gfx1100": "v_wmma"}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def _launches(case: DeformConvCase, dtype: torch.dtype, channels_last: bool = True) -> dict[str, Launch]:
    """Return every launch that forward and backward of a case make, on tensors without memory."""
    N, C, H, W = case.input
    Ho, Wo = case.output
    G, K = case.offset_groups, case.kernel[0] * case.kernel[1]

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        t = torch.empty(shape, dtype=dtype, device="meta")
        return t.contiguous(memory_format=torch.channels_last) if channels_last and len(shape) == 4 else t

    offset = torch.empty(N, 2 * G * K, Ho, Wo, dtype=dtype, device="meta")
    mask = torch.empty(N, G * K, Ho, Wo, dtype=dtype, device="meta")
    weight, bias = empty(case.out_channels, C // case.groups, *case.kernel), empty(case.out_channels)
    geometry = (*case.stride, *case.padding, *case.dilation)
    shape = triton.Shape(empty(N, C, H, W), offset, weight, mask, geometry, False)
    grad = torch.empty(N, case.out_channels, Ho, Wo, dtype=dtype, device="meta")
    grad = grad.contiguous(memory_format=torch.channels_last)
    sums = torch.empty(N, H, W, shape.C, device="meta")
    weight_launch, _ = triton.weight_launch(shape, grad)
    output = empty(*grad.shape)
    found = dict(zip(("forward",), triton.forward_launches(shape, bias, output), strict=True))
    # Where the device has more processors than there are tiles.
    with mock.patch.object(triton, "processors", return_value=4096):
        found |= zip(("share", "combine"), triton.forward_launches(shape, bias, output), strict=False)
    return found | {
        "samples": triton.samples_launch(shape, grad, sums, None, offset, mask),
        "samples in integers": triton.samples_launch(shape, grad, sums.long(), sums, offset, mask),
        "weight": weight_launch,
    }


def _launch(name: str, precision: str, kernel: str, channels_last: bool = True) -> Launch:
    torch.backends.cuda.matmul.fp32_precision = PRECISIONS[precision]
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    return _launches(BY_NAME[name], dtype, channels_last)[kernel]


def _multiplies(name: str, kernel: str) -> bool:
    """Return whether a kernel multiplies matrices on a case: depthwise convolutions have none."""
    return kernel != "combine" and BY_NAME[name].groups == 1


# What must not spill: forward and backward of S1 to S8 in every precision, those kernels that differ.
TABLE = [
    (name, precision, kernel)
    for kernel in ("forward", "share", "samples", "weight")
    for precision in PRECISIONS
    for name in BY_NAME
    if kernel != "share" or BY_NAME[name].groups == 1
]
# Run with every change: a wide one, a depthwise one, the stem where layouts are hardest; the rest is marked slow.
QUICK = {row for row in TABLE if row[0] in ("S2", "S7") and row[1] in ("float32", "bfloat16") and row[2] != "share"}
QUICK |= {("S8", "tf32", "weight"), ("S8", "bfloat16", "forward"), ("S2", "bfloat16", "share")}


def _rows(architecture: str) -> list[Any]:
    slow = pytest.mark.slow
    quick = {row for row in QUICK if architecture == "sm_90" or row[0] == "S2"}
    return [pytest.param(architecture, *row, marks=() if row in quick else slow) for row in TABLE]


@pytest.mark.parametrize(("architecture", "name", "precision", "kernel"), [*_rows("sm_80"), *_rows("sm_90")])
def test_no_register_is_spilled(
    compiled: Callable[..., Any], architecture: str, name: str, precision: str, kernel: str
) -> None:
    found = compiled(_launch(name, precision, kernel), architecture)
    assert found.spilled == 0, found.registers
    if precision != "float32" and _multiplies(name, kernel):
        assert MATRIX[architecture] in found.assembly


@pytest.mark.parametrize(
    "kernel", ["forward", *(pytest.param(k, marks=pytest.mark.slow) for k in ("samples", "weight"))]
)
@pytest.mark.parametrize("architecture", ["sm_100", "gfx942", "gfx1100"])
def test_every_architecture(compiled: Callable[..., Any], architecture: str, kernel: str) -> None:
    found = compiled(_launch("S1", "bfloat16", kernel), architecture)
    assert MATRIX[architecture] in found.assembly
    # Of what every block of these devices may have without asking.
    assert found.shared <= 64 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("name", ["S1", "S7", "S8"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", MATRIX)
def test_everything_compiles(
    compiled: Callable[..., Any], architecture: str, kernel: str, precision: str, name: str
) -> None:
    if architecture.startswith("gfx") and precision == "tf32":
        pytest.skip("never asked for: ROCm has TF32 on one family of devices only")
    if kernel in ("share", "combine") and name == "S7":
        pytest.skip("depthwise sums are short: they are not shared out")
    found = compiled(_launch(name, precision, kernel, channels_last=False), architecture)
    assert found.spilled == 0 or architecture not in ("sm_80", "sm_90"), found.registers
    # Of what every block of these devices may have, AMD's and NVIDIA's for desktops too.
    assert found.shared <= 64 * 1024


def test_channels_are_loaded_16_bytes_at_a_time(compiled: Callable[..., Any]) -> None:
    for precision in ("bfloat16", "tf32"):
        assembly = compiled(_launch("S2", precision, "forward"), "sm_90").assembly
        loads = [line for line in assembly.splitlines() if "ld.global" in line]
        # Four corners of at least one row; only offsets and masks come one at a time, of four positions at most.
        assert sum("v4.b32" in line for line in loads) >= 4
        assert sum(".v" not in line for line in loads) <= 12
    # Three channels are padded to four.
    assembly = compiled(_launch("S8", "bfloat16", "forward"), "sm_90").assembly
    assert "v2.b32" in assembly
