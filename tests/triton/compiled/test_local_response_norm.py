"""The Triton kernels of local response normalization compile for real GPUs, and no register is spilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pliant.ops.gpu.launch import Launch
from pliant.ops.local_response_norm import triton as lrn
from pliant.testing import LRN_SPEED

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
def test_no_register_is_spilled(
    compiled: Callable[..., Any], architecture: str, name: str, dtype: torch.dtype, channels_last: bool, backward: bool
) -> None:
    found = compiled(_norm(name, dtype, channels_last, backward), architecture)
    assert found.spilled == 0, found.registers


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_100", "gfx942", "gfx1100"])
def test_every_architecture(compiled: Callable[..., Any], architecture: str) -> None:
    for backward in (False, True):
        compiled(_norm("A1", torch.bfloat16, False, backward), architecture)
