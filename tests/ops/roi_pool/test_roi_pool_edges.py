"""RoI pooling over bins of whole pixels at the edges: strange boxes, NaN and infinity, sizes, layouts, autocast."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pliant import ops
from pliant.testing import PS_ROI_CASES, ROI_CASES, TOLERANCE, error

Operator = Callable[..., Tensor]
CASE = PS_ROI_CASES[0]
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


@pytest.mark.parametrize("index", [-1.0, 2.0, math.nan, math.inf, 1e30])
def test_an_image_that_is_not_there(pool: Operator, index: float) -> None:
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 4, 4], [index, 0, 0, 4, 4], [1, 0, 0, 4, 4]])
    name = pool.func.__name__
    with pytest.raises(ValueError, match=rf"^{name}: boxes\[1, 0\] must be the index of one of the 2 images, got"):
        pool(x, boxes, 2)

    # Where values cannot be looked at, such a box gives zeros and reads nothing.
    compiled = torch.compile(lambda x, boxes: pool(x, boxes, 2), backend="eager")
    if pool.keywords["implementation"] == "native":
        y = compiled(x, boxes)
        assert not y[1].any()
        assert torch.equal(y[[0, 2]], pool(x, boxes[[0, 2]], 2))
        y[1].sum().backward()
        assert not x.grad.any()


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


# Sizes.


@pytest.mark.parametrize("images", [0, 2])
def test_no_boxes(pool: Operator, images: int) -> None:
    x = torch.randn(images, 8, 5, 6, requires_grad=True)
    y = pool(x, torch.zeros(0, 5), 2)
    assert y.shape == (0, 8 if "ps" not in pool.func.__name__ else 2, 2, 2)
    y.sum().backward()
    assert not x.grad.any()


def test_a_map_of_one_pixel(pool: Operator) -> None:
    x = torch.full((1, 4, 1, 1), 3.0)
    assert (pool(x, torch.tensor([[0.0, 0, 0, 0, 0]]), 2) == 3).all()


@pytest.mark.parametrize("name", NAMES)
def test_shapes_beyond_two_to_the_31_on_meta(name: str) -> None:
    x = torch.empty(2, 32768, 256, 256, device="meta", requires_grad=True)
    y = getattr(ops, name)(x, torch.empty(9, 5, device="meta"), 4)
    assert x.numel() > 2**31
    assert y.shape == (9, 32768 if name == "roi_pool" else 2048, 4, 4)
    y.sum().backward()
    assert x.grad.shape == x.shape


# Layouts and autocast.


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_have_the_layout_of_the_input(of: SimpleNamespace, dtype: torch.dtype) -> None:
    # Of the position-sensitive case each bin has two channels.
    for pool, case in ((of.roi_pool, ROI_CASES[0]), (of.ps_roi_pool, CASE)):
        for last in (True, False):
            t = case.tensors("roi_pool", dtype, channels_last=last)
            y = pool(t["input"], t["boxes"], case.output_size, case.spatial_scale)
            assert _is_channels_last(y) == last
            if not last:
                assert y.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_have_the_layout_of_the_input(name: str, dtype: torch.dtype) -> None:
    for last in (True, False):
        t = CASE.tensors("roi_pool", dtype, channels_last=last)
        leaf = t["input"].requires_grad_()
        y = getattr(ops, name)(leaf, t["boxes"], CASE.output_size, CASE.spatial_scale)
        (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
        assert _is_channels_last(gradient) == last


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_runs_low_and_keeps_wide_boxes(pool: Operator, low: torch.dtype) -> None:
    t = CASE.tensors("roi_pool")
    leaf = t["input"].requires_grad_()
    with torch.autocast("cpu", low):
        y = pool(leaf, t["boxes"], CASE.output_size, CASE.spatial_scale)
        assert pool(leaf.double(), t["boxes"], 3).dtype == torch.float64
    assert y.dtype == low
    assert torch.equal(y, pool(leaf.to(low), t["boxes"], CASE.output_size, CASE.spatial_scale))
    y.sum().backward()
    assert leaf.grad.dtype == torch.float32
    assert leaf.grad.any()
