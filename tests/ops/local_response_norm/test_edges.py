"""Local response normalization at the edges: empty tensors, NaN and infinity, precision, size."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from pliant.ops import local_response_norm, lrn
from pliant.testing import TOLERANCE, error

DTYPES = tuple(TOLERANCE)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0, 0), (2, 3, 4, 0)])
def test_empty(shape: tuple[int, ...], implementation: str) -> None:
    for region in ("channel", "spatial") if len(shape) > 2 else ("channel",):
        x = torch.empty(shape, requires_grad=True)
        y = local_response_norm(x, 3, region=region, implementation=implementation)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        if first.requires_grad:
            first.sum().backward()
        assert y.shape == first.shape == shape


@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_zero_over_zero_is_nan(dtype: torch.dtype, beta: float, implementation: str) -> None:
    x = torch.zeros(1, 40, dtype=dtype)
    x[0, 7] = 2
    y = lrn(x, 2, 0.0, 1.0, beta, implementation=implementation)[0]
    inside = torch.arange(40).sub(7).abs() <= 2
    assert torch.equal(y.isnan(), ~inside)
    assert (y[inside & (torch.arange(40) != 7)] == 0).all()
    assert math.isclose(float(y[7]), 2 ** (1 - 2 * beta), rel_tol=4e-3)


@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75, 1.0])
@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_and_infinity_stay_in_their_windows(beta: float, channels_last: bool, implementation: str) -> None:
    x = torch.randn(1, 24, 5, 5)
    x[0, 6, 2, 2], x[0, 17, 2, 2] = math.nan, math.inf
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    clean = torch.where(x.isfinite(), x, 0)
    function = partial(local_response_norm, size=5, beta=beta, implementation=implementation)
    y, expected = function(x), function(clean)
    channel = torch.arange(24)
    touched = (channel - 6).abs() <= 2
    flooded = (channel - 17).abs() <= 2
    column = y[0, :, 2, 2]
    assert column[touched].isnan().all()
    # S is infinite: what is finite becomes 0, infinity over infinity is NaN.
    assert (column[flooded & (channel != 17)] == 0).all()
    assert column[17].isnan()
    expected[0, touched | flooded, 2, 2] = column[touched | flooded]
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75, 1.0, 2.0])
@pytest.mark.parametrize("k", [-2.0, 0.0, 1e-42, 1e38])
def test_kernel_follows_ieee_where_the_reference_does(beta: float, k: float) -> None:
    """Negative, zero, denormal and overflowing divisors: the same NaNs and infinities, the same numbers between."""
    x = torch.tensor([0.0, -0.0, 1e-30, 1e-19, 1.0, -3.0, 1e18, -1e25, 3e38], dtype=torch.float32)
    x = x.repeat(30).view(1, -1, 1)
    y = local_response_norm(x, 1, 1.0, beta, k, implementation="native")
    expected = local_response_norm(x, 1, 1.0, beta, k, implementation="reference")
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.allclose(y.nan_to_num(), expected.nan_to_num(), rtol=1e-5, atol=1e-44)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("k", [-2.0, 0.0, 1e-42, 1.0, 1e38])
def test_five_channels_to_three_quarters_follow_ieee_too(k: float, channels_last: bool) -> None:
    """AlexNet's exponent has loops of its own, which estimate: beside odd divisors, and where a run has a rest."""
    scales = torch.tensor([0.0, 1e-25, 1e-19, 1e-12, 1.0, 3.0, 1e12, 1e18, 1e25])
    x = torch.rand(2, 13, 7, 9, generator=torch.Generator().manual_seed(3)) + 0.5
    x = x * scales.repeat(7).view(7, 9)  # a pixel has one magnitude in all channels
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    y = local_response_norm(x, 5, 5.0, 0.75, k, implementation="native")
    expected = local_response_norm(x.double(), 5, 5.0, 0.75, k, implementation="reference")
    square = x.double().square()
    total = k + sum(torch.nn.functional.pad(square, (0, 0, 0, 0, 2, 2))[:, j : j + 13] for j in range(5))
    exact = (total > 1e-37) & (total < 3e38) & ((square > 1e-37) | (k > 1e-37))
    assert exact.any()
    assert ((y - expected).abs() <= 1e-6 * expected.abs() + 1e-44)[exact].all()
    single = local_response_norm(x, 5, 5.0, 0.75, k, implementation="reference")
    assert torch.equal(y.isnan(), single.isnan())
    assert torch.allclose(y.nan_to_num(), single.nan_to_num(), rtol=1e-5, atol=1e-44)


def test_float16_does_not_overflow(implementation: str) -> None:
    x = torch.full((1, 5, 2, 2), 1000.0, dtype=torch.float16)
    y = local_response_norm(x, 5, 1e-4, 0.75, 1.0, implementation=implementation)
    # Window sums of 3, 4, 5, 4, 3 squares of 10⁶.
    expected = torch.tensor([1000 / (1 + 1e-4 / 5 * n * 1e6) ** 0.75 for n in (3, 4, 5, 4, 3)], dtype=torch.float64)
    assert error(y[0, :, 0, 0], expected) < TOLERANCE[torch.float16]


def test_large_values_do_not_leak() -> None:
    """A running sum would carry the rounding error of one huge value through all later channels."""
    x = torch.ones(1, 200, 3, 3)
    x[:, 3] = 1e12
    y = local_response_norm(x, 5, 1.0, 0.5, 0.0)
    assert torch.equal(y[:, 6:198], torch.ones(1, 192, 3, 3))
