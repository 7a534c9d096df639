from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pliant.data import FashionMNIST, Ranges, draw, object_size, render

SQUARE = torch.full((8, 28, 28), 255, dtype=torch.uint8)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return FashionMNIST.load().test.pictures[:40]


def _drawn(pictures: Tensor, ranges: Ranges, seed: int = 0) -> Tensor:
    return render(pictures, draw(ranges, len(pictures), torch.Generator().manual_seed(seed)))


def test_identity_is_exact(pictures: Tensor) -> None:
    canvas = _drawn(pictures, Ranges())
    assert canvas.shape == (40, 1, 64, 64)
    torch.testing.assert_close(canvas[:, 0, 18:46, 18:46], pictures / 255, atol=1e-5, rtol=0)
    assert canvas.sum() == pytest.approx((pictures / 255).sum().item(), rel=1e-6)


def test_quarter_turn_is_rot90(pictures: Tensor) -> None:
    upright = _drawn(pictures, Ranges())
    turned = _drawn(pictures, Ranges(rotation=(90, 90)))
    left, right = (torch.rot90(upright, k, (2, 3)) for k in (1, 3))
    is_left, is_right = ((turned - side).abs().amax((1, 2, 3)) < 1e-4 for side in (left, right))
    assert (is_left ^ is_right).all()
    assert is_left.any()
    assert is_right.any()


def test_half_size_is_the_area_average(pictures: Tensor) -> None:
    canvas = _drawn(pictures, Ranges(scale=(0.5, 0.5)))
    expected = torch.nn.functional.avg_pool2d(pictures[:, None] / 255, 2)
    torch.testing.assert_close(canvas[:, :, 25:39, 25:39], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.4, 2.0])
def test_scale_changes_the_measured_size(scale: float) -> None:
    assert object_size(_drawn(SQUARE, Ranges())).tolist() == [28.0] * 8
    size = object_size(_drawn(SQUARE, Ranges(scale=(scale, scale)))).mean().item()
    assert size == pytest.approx(28 * scale, rel=0.04)


def test_aspect_shear_and_bend_keep_the_area() -> None:
    for ranges in (Ranges(aspect=(1.5, 1.5)), Ranges(shear=(0.4, 0.4)), Ranges(bend=(0.05, 0.05))):
        area = _drawn(SQUARE, ranges).sum((1, 2, 3))
        torch.testing.assert_close(area, torch.full((8,), 784.0), rtol=0.12, atol=0)


def test_aspect_is_the_ratio_of_sides() -> None:
    canvas = _drawn(SQUARE, Ranges(aspect=(2, 2))) > 0.5
    height, width = canvas.any(3).sum((1, 2)), canvas.any(2).sum((1, 2))
    assert set((width / height).tolist()) == {2.0, 0.5}


def test_shear_leans_upright_lines() -> None:
    line = torch.zeros(8, 28, 28)
    line[:, :, 13:15] = 255
    canvas = _drawn(line, Ranges(shear=(0.5, 0.5)))[:, 0]
    across = torch.arange(64.0)
    top, bottom = ((canvas[:, y] * across).sum(1) / canvas[:, y].sum(1) for y in (22, 42))
    torch.testing.assert_close((top - bottom).abs(), torch.full((8,), 10.0), atol=0.05, rtol=0)


def test_bending_moves_by_the_amplitude_at_most() -> None:
    poses = draw(Ranges(bend=(0.1, 0.1)), 500, torch.Generator().manual_seed(0))
    from pliant.data.drawing import _bent

    at = torch.rand(500, 50, 2, generator=torch.Generator().manual_seed(1)) * 28 - 14
    moved = (_bent(at, poses, (28, 28)) - at).abs().max().item()
    assert 2.7 < moved <= 2.8 + 1e-4


def test_shift_stays_within_its_range(pictures: Tensor) -> None:
    poses = draw(Ranges(shift=4), 1000, torch.Generator().manual_seed(0))
    assert 3.9 < poses.shift.abs().max() <= 4
    assert poses.shift.min() < -3.9


def test_same_seed_same_pictures(pictures: Tensor) -> None:
    ranges = Ranges((0.7, 1.4), (0, 30), (1, 1.3), (0, 0.2), (0, 0.08), 4)
    assert torch.equal(_drawn(pictures, ranges, 3), _drawn(pictures, ranges, 3))
    assert not torch.equal(_drawn(pictures, ranges, 3), _drawn(pictures, ranges, 4))


def test_ranges_that_differ_in_one_transformation_agree_in_the_others() -> None:
    plain = Ranges(scale=(0.9, 1.1), shift=4)
    first, second = (
        draw(r, 10, torch.Generator().manual_seed(0))
        for r in (plain, replace(plain, rotation=(60, 60), bend=(0.1, 0.1)))
    )
    assert torch.equal(first.shift, second.shift)
    torch.testing.assert_close(torch.linalg.det(first.matrix), torch.linalg.det(second.matrix))
    angle = torch.atan2(second.matrix[:, 0, 1], second.matrix[:, 0, 0]).abs()
    torch.testing.assert_close(angle, torch.full((10,), math.pi / 3))


def test_parts_do_not_matter(pictures: Tensor) -> None:
    """An image is drawn the same alone and among others, whatever their poses are."""
    poses = draw(Ranges((0.5, 2), (0, 90)), 40, torch.Generator().manual_seed(0))
    together = render(pictures, poses)
    alone = render(pictures[35:36], type(poses)(*(field[35:36] for field in poses)))
    torch.testing.assert_close(together[35:36], alone, atol=1e-5, rtol=0)


def test_nothing_to_draw(pictures: Tensor) -> None:
    assert _drawn(pictures[:0], Ranges()).shape == (0, 1, 64, 64)


def test_errors(pictures: Tensor) -> None:
    with pytest.raises(ValueError, match=r"aspect must be \(least, most\) with 1 ≤ least"):
        Ranges(aspect=(0.5, 2))
    with pytest.raises(ValueError, match="scale must be"):
        Ranges(scale=(0, 1))
    with pytest.raises(ValueError, match="rotation must be"):
        Ranges(rotation=(30, 10))
    with pytest.raises(ValueError, match="shift must be at least 0"):
        Ranges(shift=-1)
    with pytest.raises(ValueError, match="one pose per image, got 3 for 40"):
        render(pictures, draw(Ranges(), 3, torch.Generator()))
