"""Deformable convolution: one sample at a time, values from elsewhere, properties."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.testing import DEFORM_CONV_CASES, DeformConvCase, error

Operator = Callable[..., Tensor]
BOUNDARIES = ("zeros", "clamp")
BY_NAME = {case.name: case for case in DEFORM_CONV_CASES}

# One sample at a time, forward and backward, in NumPy and from the formulas alone.

Corner = tuple[int, int, float, float, float]


def _corners(y: float, x: float, H: int, W: int, boundary: str) -> list[Corner]:
    """Return the pixels one sample reads: (row, column, weight, d weight/dy, d weight/dx)."""
    first = -1 if boundary == "zeros" else 0
    if not (math.isfinite(y) and math.isfinite(x) and first <= y < H and first <= x < W):
        return []
    top, left = math.floor(y), math.floor(x)
    fy, fx = y - top, x - left
    found = []
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            weight_y, slope_y = (fy, 1.0) if down else (1 - fy, -1.0)
            weight_x, slope_x = (fx, 1.0) if right else (1 - fx, -1.0)
            if boundary == "clamp":
                row, column = min(row, H - 1), min(column, W - 1)
            if 0 <= row < H and 0 <= column < W:
                found.append((row, column, weight_y * weight_x, slope_y * weight_x, weight_y * slope_x))
    return found


def _one_by_one(input, offset, weight, bias, mask, stride, padding, dilation, boundary, grad):
    """Return the output, and the gradients of ``Σ grad·output`` in input, offset, weight, bias and mask."""
    N, C, H, W = input.shape
    O, Cg, Kh, Kw = weight.shape
    _, _, Ho, Wo = offset.shape
    K = Kh * Kw
    G = offset.shape[1] // (2 * K)
    output = np.zeros((N, O, Ho, Wo)) + (0 if bias is None else bias[:, None, None])
    d_input, d_offset, d_weight = np.zeros_like(input), np.zeros_like(offset), np.zeros_like(weight)
    d_mask = np.zeros((N, G * K, Ho, Wo))
    for n, c, i, j, ho, wo in np.ndindex(N, C, Kh, Kw, Ho, Wo):
        offset_group, k = c // (C // G), i * Kw + j
        y = ho * stride[0] - padding[0] + i * dilation[0] + offset[n, (offset_group * K + k) * 2, ho, wo]
        x = wo * stride[1] - padding[1] + j * dilation[1] + offset[n, (offset_group * K + k) * 2 + 1, ho, wo]
        factor = 1.0 if mask is None else mask[n, offset_group * K + k, ho, wo]
        read = _corners(y, x, H, W, boundary)
        value = sum(w * input[n, c, row, column] for row, column, w, _, _ in read)

        group = c // Cg
        outputs = slice(group * (O // (C // Cg)), (group + 1) * (O // (C // Cg)))
        taps = weight[outputs, c % Cg, i, j]
        output[n, outputs, ho, wo] += taps * factor * value

        above = grad[n, outputs, ho, wo]
        d_weight[outputs, c % Cg, i, j] += above * factor * value
        through = float(above @ taps)
        d_mask[n, offset_group * K + k, ho, wo] += through * value
        for row, column, w, wy, wx in read:
            d_input[n, c, row, column] += through * factor * w
            d_offset[n, (offset_group * K + k) * 2, ho, wo] += through * factor * wy * input[n, c, row, column]
            d_offset[n, (offset_group * K + k) * 2 + 1, ho, wo] += through * factor * wx * input[n, c, row, column]
    return output, d_input, d_offset, d_weight, grad.sum((0, 2, 3)), d_mask


# Everything different in the two directions; offset groups finer than, coarser than and equal to the groups.
SMALL = (
    DeformConvCase("finer", (2, 4, 5, 4), 6, (2, 3), (1, 2), (2, 1), (2, 1), groups=2, offset_groups=4),
    DeformConvCase("coarser", (1, 4, 3, 6), 4, (3, 1), (2, 1), (0, 2), (1, 3), groups=4, offset_groups=2),
    DeformConvCase("equal", (2, 6, 4, 3), 3, (1, 2), (1, 1), (1, 0), (1, 2), groups=3, offset_groups=3),
    DeformConvCase("across", (1, 6, 4, 5), 4, (2, 2), (2, 3), (1, 2), (1, 1), groups=2, offset_groups=3),
    DeformConvCase("one pixel", (2, 2, 1, 1), 3, (3, 3)),
)


@pytest.mark.parametrize("optional", ["bias and mask", "neither"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_equals_one_sample_at_a_time(deform: Operator, case: DeformConvCase, boundary: str, optional: str) -> None:
    tensors = case.tensors(torch.float64)
    # A third of the offsets are whole numbers: there every derivative is the right-sided one.
    whole = torch.arange(tensors["offset"].numel()).view_as(tensors["offset"]) % 3 == 0
    tensors["offset"] = torch.where(whole, tensors["offset"].round(), tensors["offset"])
    if optional == "neither":
        del tensors["bias"], tensors["mask"]
    grad = torch.randn(case.input[0], case.out_channels, *case.output, dtype=torch.float64)
    arrays = {name: t.numpy() for name, t in tensors.items()}
    expected = _one_by_one(
        **{"bias": None, "mask": None, **arrays}, **case.geometry, boundary=boundary, grad=grad.numpy()
    )

    for t in tensors.values():
        t.requires_grad_()
    actual = deform(**tensors, **case.geometry, boundary=boundary)
    actual.backward(grad)
    assert error(actual, torch.from_numpy(expected[0])) < 1e-12
    for name, gradient in zip(("input", "offset", "weight", "bias", "mask"), expected[1:], strict=True):
        if name in tensors:
            assert error(tensors[name].grad, torch.from_numpy(gradient)) < 1e-12, name


# Values that other projects' tests hold: detectron2, ONNX and mmcv.


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [
        (
            "zeros",
            [
                [30, 41.25, 48.75, 45, 28.75],
                [62.25, 81, 90, 80.25, 50.25],
                [99.75, 126, 135, 117.75, 72.75],
                [105, 131.25, 138.75, 120, 73.75],
                [71.75, 89.25, 93.75, 80.75, 49.5],
            ],
        ),
        (
            "clamp",
            [
                [24, 39, 45, 50, 35],
                [51, 81, 90, 97.5, 67.5],
                [81, 126, 135, 142.5, 97.5],
                [106, 163.5, 172.5, 180, 122.5],
                [79, 121.5, 127.5, 132.5, 90],
            ],
        ),
    ],
)
def test_known_values_of_detectron2(deform: Operator, boundary: str, expected: list[list[float]]) -> None:
    x, weight = torch.arange(25.0).view(1, 1, 5, 5), torch.ones(1, 1, 3, 3)
    offset, half = torch.full((1, 18, 5, 5), 0.5), torch.full((1, 9, 5, 5), 0.5)
    known = torch.tensor(expected)[None, None]
    assert torch.equal(deform(x, offset, weight, padding=1, boundary=boundary), known)
    assert torch.equal(deform(x, offset, weight, padding=1, mask=half, boundary=boundary), known / 2)


def _offset(*shape: int, **at: float) -> Tensor:
    """Return zeros with values at the named places, such as c5_1_2=-0.1 for [0, 5, 1, 2]."""
    offset = torch.zeros(1, *shape)
    for place, value in at.items():
        offset[(0, *map(int, place[1:].split("_")))] = value
    return offset


NINE = torch.arange(9.0).view(1, 1, 3, 3)
ONES = torch.ones(1, 1, 2, 2)


def test_known_values_of_onnx_padded(deform: Operator) -> None:
    y = deform(NINE, _offset(8, 4, 4, c0_0_0=0.5, c5_1_2=-0.1), ONES, padding=1)
    known = torch.tensor([[0, 1, 3, 2], [3, 8, 11.9, 7], [9, 20, 24, 13], [6, 13, 15, 8]])
    assert error(y[0, 0], known) < 1e-6


def test_known_values_of_onnx_unpadded(deform: Operator) -> None:
    y = deform(NINE, _offset(8, 2, 2, c0_0_0=0.5, c5_0_1=-0.1), ONES)
    assert error(y[0, 0], torch.tensor([[9.5, 11.9], [20, 24]])) < 1e-6


def test_known_values_of_onnx_bias_and_mask(deform: Operator) -> None:
    mask = torch.ones(1, 4, 2, 2)
    mask[0, 2, 1, 1] = 0.2
    y = deform(NINE, _offset(8, 2, 2, c0_0_0=0.5, c5_0_1=-0.1), ONES, torch.ones(1), mask=mask)
    assert error(y[0, 0], torch.tensor([[10.5, 12.9], [21, 19.4]])) < 1e-6


def test_known_values_of_onnx_offset_groups(deform: Operator) -> None:
    x = torch.cat([NINE, 8 - NINE], 1)
    y = deform(x, _offset(16, 2, 2, c0_0_0=0.5, c13_0_1=-0.1), torch.ones(1, 2, 2, 2))
    assert error(y[0, 0], torch.tensor([[33.5, 32.1], [32, 32]])) < 1e-6


def test_known_values_of_mmcv(deform: Operator) -> None:
    x = torch.tensor([1.0, 2, 3]).expand(1, 1, 3, 3)
    known = torch.tensor([[0.5, 1.5, 2.5, 1.5], [1, 3, 5, 3], [1, 3, 5, 3], [0.5, 1.5, 2.5, 1.5]])
    y = deform(x, torch.zeros(1, 8, 4, 4), ONES, padding=1, mask=torch.full((1, 4, 4, 4), 0.5))
    assert torch.equal(y[0, 0], known)
    assert torch.equal(deform(x, torch.zeros(1, 8, 4, 4), ONES, padding=1)[0, 0], 2 * known)


def test_float16_coordinates_stay_exact_beyond_1024(deform: Operator) -> None:
    # float16 has no fractions of a pixel above 1024 and no odd pixels above 2048; coordinates are float32.
    W = 3000
    x = (torch.arange(W) % 4).to(torch.float16).expand(1, 1, 1, W)
    offset = torch.zeros(1, 2, 1, W)
    offset[:, 1] = 0.25
    after = torch.cat([x[..., 1:], x.new_zeros(1, 1, 1, 1)], -1)
    y = deform(x, offset, torch.ones(1, 1, 1, 1, dtype=torch.float16))
    assert torch.equal(y, 0.75 * x + 0.25 * after)


# Properties that hold whatever the numbers are.


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("case", DEFORM_CONV_CASES, ids=lambda case: case.name)
def test_zero_offset_is_a_convolution(deform: Operator, case: DeformConvCase, modulated: bool) -> None:
    t = case.tensors(torch.float64)
    mask = torch.ones_like(t["mask"]) if modulated else None
    y = deform(t["input"], torch.zeros_like(t["offset"]), t["weight"], t["bias"], **case.geometry, mask=mask)
    assert error(y, F.conv2d(t["input"], t["weight"], t["bias"], **case.geometry, groups=case.groups)) < 1e-12


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, -2), (-3, 2)])
def test_integer_offset_is_a_shift(deform: Operator, dy: int, dx: int) -> None:
    case = BY_NAME["plain"]
    t = case.tensors(torch.float64)
    offset = torch.zeros_like(t["offset"])
    offset[:, 0::2], offset[:, 1::2] = dy, dx
    # Padded by 4 on every side, then cut so that the convolution's origin lies (dy, dx) further.
    wide = F.pad(t["input"], (4, 4, 4, 4))
    H, W = case.input[2:]
    shifted = wide[:, :, 3 + dy : 5 + dy + H, 3 + dx : 5 + dx + W]
    y = deform(t["input"], offset, t["weight"], t["bias"], padding=1)
    assert error(y, F.conv2d(shifted, t["weight"], t["bias"])) < 1e-12


def test_mask_zero_leaves_the_bias(deform: Operator) -> None:
    case = BY_NAME["crooked"]
    t = case.tensors()
    y = deform(**{**t, "mask": torch.zeros_like(t["mask"])}, **case.geometry)
    assert torch.equal(y, t["bias"].view(1, -1, 1, 1).expand_as(y))


def test_trains_as_a_convolution_does_at_zero_offset(deform: Operator) -> None:
    case = BY_NAME["crooked"]
    t = case.tensors(torch.float64)
    t["offset"], t["mask"] = torch.zeros_like(t["offset"]), torch.ones_like(t["mask"])
    output = deform(**{name: x.requires_grad_() for name, x in t.items()}, **case.geometry)
    above = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = dict(zip(t, torch.autograd.grad(output, list(t.values()), above), strict=True))
    leaves = {name: t[name].detach().requires_grad_() for name in ("input", "weight", "bias")}
    output = F.conv2d(**leaves, **case.geometry, groups=case.groups)
    for name, expected in zip(leaves, torch.autograd.grad(output, list(leaves.values()), above), strict=True):
        assert error(found[name], expected) < 1e-12, name
