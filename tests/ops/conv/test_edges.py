"""Deformable convolution at the edges: borders, hostile coordinates, NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pliant.testing import DEFORM_CONV_CASES, TOLERANCE, error

Operator = Callable[..., Tensor]
BY_NAME = {case.name: case for case in DEFORM_CONV_CASES}
H, W = 4, 5


# Up to four channels are kept in a frame of zeros, more are not; eight have weights that add up exactly.
@pytest.fixture(params=[1, 8], ids=["framed", "dense"])
def channels(request: pytest.FixtureRequest) -> int:
    return request.param


def _one_sample(
    deform: Operator, channels: int, y: float, x: float, map: Tensor, **options: object
) -> tuple[Tensor, ...]:
    """Return value, gradient in the map, (d/dy, d/dx) and mask gradient of one sample at (y, x) of an (H, W) map.

    As many channels as asked for hold that map, and the sample is their mean.
    """
    map = map.detach().repeat(1, channels, 1, 1).requires_grad_()
    offset = torch.tensor([y, x], dtype=torch.float64).to(map.dtype)
    # One tap at output pixel (0, 0); everything else of the output is masked away.
    offset = torch.cat([offset, offset.new_zeros(2)]).view(2, 2).T.reshape(1, 2, 1, 2).clone().requires_grad_()
    mask = offset.new_tensor([1.0, 0.0]).view(1, 1, 1, 2).requires_grad_()
    weight = map.new_full((1, channels, 1, 1), 1 / channels)
    stride = (map.shape[2], map.shape[3] - 1)
    value = deform(map, offset, weight, stride=stride, mask=mask, **options)
    value[0, 0, 0, 0].backward()
    return value[0, 0, 0, 0], map.grad[0].sum(0), offset.grad[0, :, 0, 0], mask.grad[0, 0, 0, 0]


RAMP = torch.arange(1.0, 1 + H * W, dtype=torch.float64).view(H, W) ** 2


@pytest.mark.parametrize("x", [-1.5, -1.0, -0.25, 0.0, 1.0, 1.75, W - 1.0, W - 0.5, float(W)])
@pytest.mark.parametrize("y", [-1.001, -1.0, -0.999, 0.0, 2.0, H - 1.0, H - 0.001, float(H), H + 3.0])
def test_zeros_outside_the_map(deform: Operator, channels: int, y: float, x: float) -> None:
    def pixel(row: int, column: int) -> float:
        return float(RAMP[row, column]) if 0 <= row < H and 0 <= column < W else 0.0

    value, _, (dy, dx), d_mask = _one_sample(deform, channels, y, x, RAMP)
    top, left = math.floor(y), math.floor(x)
    fy, fx = y - top, x - left
    (a, b), (c, d) = ([pixel(row, column) for column in (left, left + 1)] for row in (top, top + 1))
    expected = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)
    inside = -1 <= y < H and -1 <= x < W
    assert value.item() == pytest.approx(expected if inside else 0, abs=1e-12)
    assert d_mask.item() == pytest.approx(value.item(), abs=1e-12)
    # The right-sided derivatives: at -1 they already see the first row and column.
    assert dy.item() == pytest.approx((1 - fx) * (c - a) + fx * (d - b) if inside else 0, abs=1e-9)
    assert dx.item() == pytest.approx((1 - fy) * (b - a) + fy * (d - c) if inside else 0, abs=1e-9)


@pytest.mark.parametrize("x", [-0.25, 0.0, 1.75, W - 1.0, W - 0.5, float(W)])
@pytest.mark.parametrize("y", [-1.0, -0.001, 0.0, 2.5, H - 1.0, H - 0.001, float(H)])
def test_clamp_at_the_border(deform: Operator, channels: int, y: float, x: float) -> None:
    value, _, slopes, d_mask = _one_sample(deform, channels, y, x, RAMP, boundary="clamp")
    if not (0 <= y < H and 0 <= x < W):
        assert value == d_mask == 0
        assert not slopes.any()
        return
    top, left = math.floor(y), math.floor(x)
    low, right = min(top + 1, H - 1), min(left + 1, W - 1)
    fy, fx = y - top, x - left
    a, b, c, d = RAMP[top, left], RAMP[top, right], RAMP[low, left], RAMP[low, right]
    assert value.item() == pytest.approx(float((1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)))
    assert slopes[0].item() == pytest.approx(float((1 - fx) * (c - a) + fx * (d - b)), abs=1e-9)
    assert slopes[1].item() == pytest.approx(float((1 - fy) * (b - a) + fy * (d - c)), abs=1e-9)


def test_right_sided_derivative_where_training_starts(deform: Operator) -> None:
    # Padding 1 and zero offsets put the first row of samples at exactly -1.
    x = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    offset = torch.zeros(1, 18, 3, 3, dtype=torch.float64, requires_grad=True)
    deform(x, offset, torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=1).sum().backward()
    # Tap (0, 1) of output (0, 1) samples (-1, 1): moving down finds the ones. Tap (2, 1) of output (2, 1) samples
    # (3, 1), which is H: outside for good.
    assert offset.grad[0, 2 * 1, 0, 1] == 1
    assert offset.grad[0, 2 * 7, 2, 1] == 0
    # Tap (2, 1) of output (1, 1) samples the last row: moving down leaves the map.
    assert offset.grad[0, 2 * 7, 1, 1] == -1


FAR = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e9, -1e9, 2.0**31, -(2.0**31), 2.0**63, 1e5, -1e5]


@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("far", FAR)
def test_a_coordinate_that_is_nowhere_samples_nothing(
    deform: Operator, channels: int, far: float, dtype: torch.dtype, boundary: str
) -> None:
    for y, x in ((far, 1.5), (1.5, far), (far, far)):
        value, d_map, slopes, d_mask = _one_sample(deform, channels, y, x, RAMP.to(dtype), boundary=boundary)
        assert value == d_mask == 0
        assert not slopes.any()
        assert not d_map.any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
def test_wild_offsets_among_tame_ones(
    deform: Operator, boundary: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    # Every seventh offset is wild; the rest must come out as if the wild taps were masked away.
    case = BY_NAME["tiles"]
    t = case.tensors(dtype, channels_last=layout == torch.channels_last)
    wild = torch.tensor(FAR).to(dtype).repeat(t["offset"].numel())[: t["offset"].numel()].view_as(t["offset"])
    chosen = torch.arange(t["offset"].numel()).view_as(t["offset"]) % 7 == 0
    lost = chosen[:, 0::2] | chosen[:, 1::2]
    results = []
    for offset, mask in (
        (torch.where(chosen, wild, t["offset"]), t["mask"]),
        (t["offset"], t["mask"].masked_fill(lost, 0)),
    ):
        leaves = {**t, "offset": offset, "mask": mask}
        leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
        y = deform(**leaves, **case.geometry, boundary=boundary)
        y.square().sum().backward()
        results.append((y, {name: x.grad for name, x in leaves.items()}))
    (y, wild_grads), (expected, grads) = results
    assert error(y, expected) < TOLERANCE[dtype]
    grads["mask"] = grads["mask"].masked_fill(lost, 0)
    grads["offset"] = grads["offset"].masked_fill(lost.repeat_interleave(2, 1), 0)
    for name, gradient in grads.items():
        assert gradient.isfinite().all()
        assert error(wild_grads[name], gradient) < TOLERANCE[dtype], name


def test_a_nan_mask_stays_at_its_output(deform: Operator) -> None:
    case = BY_NAME["plain"]
    t = case.tensors()
    clean = deform(**t, **case.geometry)
    t["mask"][1, 4, 2, 3] = math.nan
    y = deform(**t, **case.geometry)
    assert y[1, :, 2, 3].isnan().all()
    clean[1, :, 2, 3] = math.nan
    assert torch.equal(y.nan_to_num(7), clean.nan_to_num(7))


@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_pixels_beside_the_sample_do_not_leak(deform: Operator, channels: int, bad: float, boundary: str) -> None:
    # (1.5, 2.25) reads rows 1, 2 and columns 2, 3. Whatever stands elsewhere, in the next column of memory too,
    # is not multiplied by zero: it is not there.
    map = torch.full((H, W), bad, dtype=torch.float64)
    map[1:3, 2:4] = torch.tensor([[1.0, 2], [3, 4]])
    value, d_map, slopes, d_mask = _one_sample(deform, channels, 1.5, 2.25, map, boundary=boundary)
    assert value == d_mask == 2.25
    assert torch.equal(slopes, torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert d_map.sum() == 1


@pytest.mark.parametrize(("y", "x"), [(-0.5, 1.5), (H - 0.5, 1.5), (1.5, -0.5), (1.5, W - 0.5), (-3.0, 1.5), (1.5, W)])
def test_nothing_leaks_across_the_border(deform: Operator, channels: int, y: float, x: float) -> None:
    # In memory the pixel right of the last column is the first one of the next row.
    map = torch.full((H, W), math.inf, dtype=torch.float64)
    inside = [
        (row, column)
        for row in (math.floor(y), math.floor(y) + 1)
        for column in (math.floor(x), math.floor(x) + 1)
        if 0 <= row < H and 0 <= column < W
    ]
    for row, column in inside:
        map[row, column] = 8
    value, _, slopes, _ = _one_sample(deform, channels, y, x, map)
    assert value == (4 if inside else 0)
    assert slopes.isfinite().all()


def test_an_infinite_pixel_reaches_the_samples_that_read_it(deform: Operator, channels: int) -> None:
    map = torch.zeros(H, W, dtype=torch.float64)
    map[1, 2] = math.inf
    assert _one_sample(deform, channels, 1.5, 2.25, map)[0] == math.inf


@pytest.mark.parametrize("C", [1, 2, 3, 4, 5])
def test_an_infinite_gradient_stays_at_its_tap(deform: Operator, C: int) -> None:
    # Few channels are read four at a time: beside a tap's own stand those of the next one.
    weight = torch.randn(1, C, 3, 3)
    weight[0, 0, 1, 1] = math.inf
    offset = torch.rand(1, 18, 5, 5).requires_grad_()
    mask = torch.rand(1, 9, 5, 5).requires_grad_()
    deform(torch.randn(1, C, 5, 5), offset, weight, padding=1, mask=mask).backward(torch.ones(1, 1, 5, 5))
    assert mask.grad.isfinite().all((0, 2, 3)).tolist() == [tap != 4 for tap in range(9)]
    assert offset.grad.isfinite().all((0, 2, 3)).tolist() == [channel // 2 != 4 for channel in range(18)]


def test_a_map_of_one_pixel_and_one_tap(deform: Operator) -> None:
    x = torch.full((1, 1, 1, 1), 3.0)
    y = deform(x, torch.full((1, 2, 1, 1), 0.5), torch.full((1, 1, 1, 1), 2.0))
    assert y.item() == 3 * 0.25 * 2


def test_autocast_accepts_what_low_convolutions_produce(deform: Operator) -> None:
    case = BY_NAME["plain"]
    t = case.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        y = deform(**{**t, "input": t["input"].bfloat16(), "offset": t["offset"].bfloat16()}, **case.geometry)
    assert y.dtype == torch.bfloat16
