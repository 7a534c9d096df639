"""Special cases of deformation against the convolutions they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pliant.ops import deform_conv2d
from pliant.show import canvas, grids


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def convolved(x, weight, offsets, **kwargs):
    """A convolution with the same offsets everywhere."""
    size = F.conv2d(x, weight, **kwargs).shape[-2:]
    return deform_conv2d(x, offsets[None, :, None, None].expand(1, -1, *size).contiguous(), weight, **kwargs)


def random(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kernel", [3, (5, 3), 1])
def test_scaling_is_dilation(generator, kernel):
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, weight = random(generator, 1, 2, 24, 22), random(generator, 3, 2, *sides)
    offsets = grids.affine_offsets(kernel, scale=2)
    assert offsets.shape == (2 * sides[0] * sides[1],)
    # Zero offsets with padding for the wider kernel: the same outputs, moved by the difference of the margins.
    margin = [(s - 1) // 2 for s in sides]
    got = convolved(x, weight, offsets, padding=tuple(margin))
    expected = F.conv2d(x, weight, padding=tuple(2 * m for m in margin), dilation=2)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_rotation_by_quarters_is_a_turned_kernel(generator, quarters):
    """Clockwise on the screen: the tap at the right reads below."""
    x, weight = random(generator, 1, 2, 11, 13), random(generator, 2, 2, 3, 3)
    got = convolved(x, weight, grids.affine_offsets(3, angle=90 * quarters), padding=1)
    # Rounded sines leave samples a hair outside the border, where the value falls off to zero just as slightly.
    expected = F.conv2d(x, weight.rot90(-quarters, (2, 3)), padding=1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_shear_moves_rows_sideways(generator):
    x, weight = random(generator, 1, 1, 9, 9), random(generator, 1, 1, 3, 3)
    got = convolved(x, weight, grids.affine_offsets(3, shear=1), padding=1)
    # Tap (i, j) reads (i − 1, j − 1 − (i − 1)): a 3 × 5 kernel with slanted columns.
    slanted = torch.zeros(1, 1, 3, 5, dtype=torch.float64)
    for i in range(3):
        slanted[0, 0, i, 2 - i : 5 - i] = weight[0, 0, i]
    torch.testing.assert_close(got, F.conv2d(x, slanted, padding=(1, 2)), rtol=1e-12, atol=1e-12)


def test_nothing_moves_by_default_and_two_scales_stretch():
    assert not grids.affine_offsets((3, 5), dilation=3).any()
    moved = (grids.regular(3, 2).reshape(-1) + grids.affine_offsets(3, 2, scale=(3, 0))).reshape(-1, 2)
    np.testing.assert_array_equal(moved, [(6 * i, 0) for i in (-1, 0, 1) for _ in range(3)])
    np.testing.assert_allclose(
        grids.affine_offsets(3, angle=30).reshape(9, 2)[5], (0.5, np.sqrt(3) / 2 - 1), rtol=1e-12
    )


def test_drawing_puts_filled_points_where_offsets_move_them():
    figure = canvas.sheet(3, 3)
    axes = figure.subplots()
    grids.draw(axes, np.zeros((20, 20)), (9.5, 8.0), grids.affine_offsets(3, scale=1.5), pixel=4.0)
    hollow, filled = (c.get_offsets() for c in axes.collections)
    taps = grids.regular(3).numpy()[:, ::-1]
    np.testing.assert_allclose(hollow, taps * 4 + (8.0, 9.5))
    np.testing.assert_allclose(filled, taps * 6 + (8.0, 9.5))
    data = canvas.png(figure)
    assert data.startswith(b"\x89PNG")
    assert data == canvas.png(figure)
