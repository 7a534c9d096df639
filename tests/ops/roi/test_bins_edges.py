"""RoI pooling over bins of whole pixels at the edges: strange boxes, NaN and infinity, second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pliant import ops
from pliant.testing import PS_ROI_CASES, TOLERANCE, error

Operator = Callable[..., Tensor]
NAMES = ("roi_pool", "ps_roi_pool")

# Boxes.


@pytest.mark.parametrize(
    "box",
    [
        (-9, -9, -5, -5),
        (8, 8, 20, 20),
        (-50, 2, -20, 4),
        (1e30, 0, 2e30, 5),
        (-1e30, -1e30, -1e29, -1e29),
        (math.nan, 0, 4, 4),
        (0, math.inf, 4, 4),
        (0, 0, -math.inf, 4),
        (0, 0, 4, math.nan),
        (-3e38, 0, 3e38, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_boxes_without_pixels_are_zero(pool: Operator, dtype: torch.dtype, box: tuple[float, ...]) -> None:
    x = torch.randn(1, 8, 8, 8).to(dtype).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    boxes = torch.tensor([[0, *box], [0, 1, 1, 6, 6]], dtype=wide)
    y = pool(x, boxes, 2)
    # 6·10³⁸ is a length in float64: such a box covers the map.
    if dtype != torch.float64 or box[0] != -3e38:
        assert not y[0].any()
    assert torch.equal(y[1:], pool(x, boxes[1:], 2))
    (gradient,) = torch.autograd.grad(y[:1].sum(), x)
    assert gradient.any() == y[0].any()


def test_huge_boxes_hold_the_map(of: SimpleNamespace) -> None:
    x = torch.randn(1, 4, 9, 7)
    for far in (1e3, 1e6, 1e20):
        boxes = torch.tensor([[0, -far, -far, far, far]])
        whole = torch.tensor([[0.0, 0, 0, 6, 8]])
        assert torch.equal(of.roi_pool(x, boxes, 1), of.roi_pool(x, whole, 1))
        assert error(of.ps_roi_pool(x, boxes, 1), x.mean((2, 3), keepdim=True)) < 1e-5


def test_inverted_boxes_are_one_pixel(of: SimpleNamespace) -> None:
    x = torch.randn(1, 4, 8, 8)
    boxes = torch.tensor([[0.0, 5, 6, 2, 1], [0, 3, 3, 3, 3], [0, 3, 3, 2, 7]])
    y = of.roi_pool(x, boxes, 2)
    assert torch.equal(y[0], x[0, :, 6, 5, None, None].expand(4, 2, 2))
    assert torch.equal(y[1], x[0, :, 3, 3, None, None].expand(4, 2, 2))
    assert torch.equal(
        y[2], torch.stack([x[0, :, 3:6, 3].amax(1), x[0, :, 5:8, 3].amax(1)], 1)[:, :, None].expand(4, 2, 2)
    )
    p = of.ps_roi_pool(x, boxes, 2)
    assert torch.equal(p[0].flatten(), x[0, :, 6, 5])
    assert torch.equal(p[1].flatten(), x[0, :, 3, 3])


# Pixels.


def test_nan_is_the_maximum_of_its_bins(of: SimpleNamespace) -> None:
    x = torch.randn(1, 37, 6, 6)
    x[:, ::2, 2, 2] = math.nan
    x[:, ::2, 2, 1] = math.inf
    x[:, 1::2, 4, 4] = math.nan
    leaf = x.requires_grad_()
    y = of.roi_pool(leaf, torch.tensor([[0.0, 0, 0, 2, 2], [0, 3, 3, 5, 5]]), 1).flatten(1)
    assert y[0, ::2].isnan().all() and y[0, 1::2].isfinite().all()
    assert y[1, 1::2].isnan().all() and y[1, ::2].isfinite().all()
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    assert (gradient[0, ::2, 2, 2] == 1).all()
    assert (gradient[0, 1::2, 4, 4] == 1).all()
    assert gradient.sum() == 2 * 37


def test_of_two_nans_the_first_has_the_gradient(of: SimpleNamespace) -> None:
    x = torch.full((1, 40, 4, 4), math.nan, requires_grad=True)
    of.roi_pool(x, torch.tensor([[0.0, 1, 1, 3, 3]]), 1).sum().backward()
    assert x.grad.sum() == x.grad[..., 1, 1].sum() == 40


@pytest.mark.parametrize("value", [-math.inf, -3e38, 0.0, math.inf])
def test_of_equal_pixels_the_first_has_the_gradient(of: SimpleNamespace, value: float) -> None:
    x = torch.full((1, 40, 4, 4), value, requires_grad=True)
    y = of.roi_pool(x, torch.tensor([[0.0, 1, 1, 3, 3]]), 1)
    assert (y == value).all()
    y.sum().backward()
    assert x.grad.sum() == x.grad[..., 1, 1].sum() == 40


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pixels_outside_a_bin_do_not_leak(pool: Operator, bad: float) -> None:
    x = torch.full((2, 4, 9, 9), bad)
    x[1, :, 3:5, 2:5] = 1.0
    boxes = torch.tensor([[1.0, 2, 3, 4, 4]])
    if "ps" in pool.func.__name__:
        boxes[:, 3:] += 1
    leaf = x.requires_grad_()
    y = pool(leaf, boxes, 2)
    assert torch.equal(y, torch.ones_like(y))
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient[1, :, 3:5, 2:5].sum() == y.numel()
    assert gradient.sum() == y.numel()


def test_a_map_of_one_pixel(pool: Operator) -> None:
    x = torch.full((1, 4, 1, 1), 3.0)
    assert (pool(x, torch.tensor([[0.0, 0, 0, 0, 0]]), 2) == 3).all()


def test_pixels_that_are_none_are_not_written() -> None:
    taken = torch.tensor([[[[99, -7], [2**31 - 1, 3]]]], dtype=torch.int32)
    grad = torch.ones(1, 1, 2, 2)
    found = torch.ops.pliant.roi_pool_backward(grad, (1, 1, 2, 2), False, torch.zeros(1, 5), (2, 2), 1.0, taken)
    assert found.tolist() == [[[[0, 0], [0, 1]]]]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    case = PS_ROI_CASES[0]

    t = case.tensors("roi_pool", dtype)
    wanted = torch.randn(case.input, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)

    def second(implementation: str, work: torch.dtype) -> Tensor:
        x = t["input"].to(work).requires_grad_()
        y = getattr(ops, name)(x, t["boxes"], case.output_size, case.spatial_scale, implementation=implementation)
        above = torch.ones_like(y).requires_grad_()
        (first,) = torch.autograd.grad(y, x, above, create_graph=True)
        (found,) = torch.autograd.grad(first, above, wanted.to(work))
        return found

    found = second("native", dtype)
    assert found.dtype == dtype
    expected = second("reference", torch.float64 if dtype == torch.float64 else torch.float32)
    assert expected.any()
    assert error(found, expected) < TOLERANCE[dtype]


def test_the_map_may_change_after_the_forward() -> None:
    # It is not kept: memory for a batch of maps is saved, and nothing is read of it again.
    for name in NAMES:
        case = PS_ROI_CASES[0]
        t = case.tensors("roi_pool", torch.float64)
        x, arguments = t["input"].requires_grad_(), (t["boxes"], case.output_size, case.spatial_scale)
        y = getattr(ops, name)(x * 1, *arguments, implementation="native")
        (expected,) = torch.autograd.grad(y.sum(), x)
        held = x * 1
        y = getattr(ops, name)(held, *arguments, implementation="native")
        held.data.zero_()
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, expected)
