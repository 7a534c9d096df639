"""The Triton kernels of local response normalization compute the right numbers: run by the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor

from pliant.ops import local_response_norm, lrn
from pliant.ops.local_response_norm import triton
from pliant.testing import LRN_CASES, TOLERANCE, LRNCase, error

# NumPy's word for what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")

BY_NAME = {case.name: case for case in LRN_CASES}
# As spatial_general, and many times its size.
CASES = [case for case in LRN_CASES if case.name != "spatial_tiles"]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _window(case: LRNCase) -> tuple[Any, ...]:
    """Return the operator's arguments after the input."""
    spatial = case.region == "spatial"
    before, after = case.size // 2, (case.size - 1) // 2
    if spatial or case.even == "right":
        before, after = after, before
    places = case.size**2 if spatial else case.size
    return 1, before, after, spatial, case.alpha / places, case.beta, case.k


def _expected(call: Any, t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the float64 output and the gradient of the input."""
    x = t["input"].double().requires_grad_()
    y = call(x)
    return y, torch.autograd.grad(y, x, t["grad"].double())[0]


def _check(t: dict[str, Tensor], window: tuple[Any, ...], expected: tuple[Tensor, Tensor]) -> None:
    y = triton.local_response_norm(t["input"], *window)
    gradient = triton.local_response_norm_backward(t["grad"], t["input"], *window)
    for found, exact in zip((y, gradient), expected, strict=True):
        assert found.dtype == t["input"].dtype
        assert found.stride() == torch.empty_like(t["input"]).stride()
        assert error(found, exact) < TOLERANCE[found.dtype]


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c.name in ("many_channels", "wide_map") else ()) for c in CASES],
    ids=lambda case: case.name,
)
def test_matches_the_float64_reference(case: LRNCase) -> None:
    t = case.tensors()
    expected = _expected(lambda x: local_response_norm(x, **case.arguments, implementation="reference"), t)
    _check(t, _window(case), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["alexnet", "general", "even_right", "spatial"])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    t = case.tensors(dtype)
    expected = _expected(lambda x: local_response_norm(x, **case.arguments, implementation="reference"), t)
    _check(t, _window(case), expected)


@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "even_left", "even_right", "volume", "spatial", "flat"),
        pytest.param("many_channels", marks=pytest.mark.slow),
    ],
)
def test_channels_last(name: str) -> None:
    case = BY_NAME[name]
    t = case.tensors(channels_last=True)
    assert not t["input"].is_contiguous()
    expected = _expected(lambda x: local_response_norm(x, **case.arguments, implementation="reference"), t)
    _check(t, _window(case), expected)


@pytest.mark.parametrize("radius", [0, 2, 30])
def test_tensorflows_convention(radius: int) -> None:
    random = torch.Generator().manual_seed(0)
    t = {name: torch.randn(3, 4, 21, generator=random) for name in ("input", "grad")}
    expected = _expected(lambda x: lrn(x, radius, 0.7, 0.2, 0.6, implementation="reference"), t)
    _check(t, (2, radius, radius, False, 0.2, 0.6, 0.7), expected)


def test_tensors_that_are_not_dense() -> None:
    case = BY_NAME["even_left"]
    t = case.tensors()
    expected = _expected(lambda x: local_response_norm(x, **case.arguments, implementation="reference"), t)
    strided = {name: torch.stack([x, x], -1)[..., 0] for name, x in t.items()}
    _check(strided, _window(case), expected)
    # Dense, in an order of its own; and a gradient that is one number, as of a sum.
    turned = {"input": t["input"].transpose(0, 3).contiguous().transpose(0, 3), "grad": t["grad"]}
    assert not turned["input"].is_contiguous() and not turned["input"].is_contiguous(memory_format=torch.channels_last)
    _check(turned, _window(case), expected)
    one = {"input": t["input"], "grad": torch.ones(()).expand_as(t["input"])}
    expected = _expected(lambda x: local_response_norm(x, **case.arguments, implementation="reference"), one)
    _check(one, _window(case), expected)


def test_nothing_and_zero_divisors() -> None:
    empty = torch.empty(0, 4, 3)
    assert triton.local_response_norm(empty, 1, 2, 2, False, 1.0, 0.75, 1.0).shape == (0, 4, 3)
    # 0/0 where k = 0 and the window is all zeros, and nowhere else.
    x = torch.tensor([[1.0, 0, 0, 0, 2]])
    for beta in (0.5, 0.6, 0.75, 1.0):
        y = triton.local_response_norm(x, 1, 1, 1, False, 1.0, beta, 0.0)
        assert y.isnan().tolist() == [[False, False, True, False, False]]
        assert error(y, local_response_norm(x, 3, 3.0, beta, 0.0, implementation="reference").double()) < 1e-6
        g = triton.local_response_norm_backward(torch.ones_like(x), x, 1, 1, 1, False, 1.0, beta, 0.0)
        assert g.isnan().tolist() == [[False, True, True, True, False]]


def test_squares_do_not_overflow_in_float16() -> None:
    x = torch.full((1, 3, 2), 3e4, dtype=torch.float16)
    y = triton.local_response_norm(x, 1, 1, 1, False, 1.0, 0.5, 0.0)
    assert error(y, local_response_norm(x.double(), 3, 3.0, 0.5, 0.0)) < TOLERANCE[torch.float16]


def test_64_bit_indices_where_they_are_needed() -> None:
    for inner, index in ((2**20, tl.int32), (2**22, tl.int64)):
        x = torch.empty(1, 2**9, inner, device="meta")
        (launch,) = triton.launches(None, x, x, 1, 2, 2, False, 1.0, 0.75, 1.0)
        assert launch.arguments["INDEX"] == index


@pytest.mark.parametrize("halo", [0, 1, 2, 5, 400])
@pytest.mark.parametrize("D", [5, 64, 96, 300, 1000, 5003])
def test_blocks_waste_little(D: int, halo: int) -> None:
    size, around = triton._with_halo(D, halo)
    blocks = -(-D // (size - 2 * around))
    # Every window of a place that is used lies in the block, or the block is the whole line.
    assert around == halo or (blocks == 1 and around == 0)
    assert size * blocks < 2 * max(D, 4)
