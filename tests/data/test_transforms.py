from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pliant.data import Chain, ColourJitter, Crop, Flip, Resize, ScaleJitter

GENERATOR = torch.Generator()


def _picture(H: int, W: int, boxes: list[list[int]]) -> tuple[Tensor, dict]:
    """Return a black image whose k-th box is filled with k + 1 in all channels."""
    image = torch.zeros(3, H, W, dtype=torch.uint8)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        image[:, y1:y2, x1:x2] = k + 1
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.arange(len(boxes)),
        "ignore": torch.zeros(len(boxes), dtype=torch.bool),
        "image_id": 3,
    }
    return image, target


def _extent(mask: Tensor) -> list[int]:
    y, x = (mask.any(dim).nonzero()[:, 0].tolist() for dim in (1, 0))
    return [x[0], y[0], x[-1] + 1, y[-1] + 1]


def _check_exact(image: Tensor, target: dict) -> None:
    """Check that every box is the extent of its filled area."""
    for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
        assert box == _extent(image[0] == label + 1)


PICTURE = _picture(20, 30, [[2, 3, 10, 8], [12, 4, 30, 20], [0, 10, 5, 20]])


@pytest.mark.parametrize(
    ("short", "long", "size"),
    [(40, None, (40, 60)), (10, None, (10, 15)), (40, 45, (30, 45)), (40, 61, (40, 60)), (20, None, (20, 30))],
)
def test_resize_rules(short: int, long: int | None, size: tuple[int, int]) -> None:
    for turned in (False, True):
        image, target = _picture(*((30, 20) if turned else (20, 30)), [[2, 4, 10, 8]])
        resized, found = Resize(short, long)(image, target, GENERATOR)
        assert resized.shape[1:] == (size[::-1] if turned else size)
        assert resized.dtype == torch.uint8
        factor = size[0] / 20
        torch.testing.assert_close(found["boxes"], target["boxes"] * factor)
        assert found["image_id"] == 3


def test_resize_is_exact_for_boxes() -> None:
    image, target = PICTURE
    resized, found = Resize(60)((image > 0) * torch.tensor(200, dtype=torch.uint8), target, GENERATOR)
    for x1, y1, x2, y2 in found["boxes"].int().tolist():
        inside = torch.zeros(60, 90, dtype=torch.bool)
        inside[y1:y2, x1:x2] = True
        assert (resized[0][inside] > 80).all()
    outside = torch.ones(60, 90, dtype=torch.bool)
    for x1, y1, x2, y2 in found["boxes"].int().tolist():
        outside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    assert (resized[0][outside] == 0).all()


def test_shrinking_averages() -> None:
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    image, _ = Resize(16)(stripes, PICTURE[1], GENERATOR)
    assert (image[:, :, 2:-2].int() - 100).abs().max() <= 8


def test_flip_is_exact() -> None:
    image, target = PICTURE
    flipped, found = Flip(1.0)(image, target, GENERATOR)
    assert torch.equal(flipped, image.flip(2))
    _check_exact(flipped, found)
    twice, again = Flip(1.0)(flipped, found, GENERATOR)
    assert torch.equal(twice, image) and torch.equal(again["boxes"], target["boxes"])
    same, unchanged = Flip(0.0)(image, target, GENERATOR)
    assert torch.equal(same, image) and torch.equal(unchanged["boxes"], target["boxes"])


def test_flip_happens_half_of_the_time() -> None:
    random = torch.Generator().manual_seed(0)
    flips = sum(not torch.equal(Flip()(*PICTURE, random)[0], PICTURE[0]) for _ in range(400))
    assert 160 < flips < 240


def test_crop_is_exact() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = set()
    for _ in range(100):
        image, target = Crop(16, visible=0.5)(*PICTURE, random)
        assert image.shape == (3, 16, 16)
        _check_exact(image, target)
        assert sorted(target["labels"].tolist()) == sorted({int(v) - 1 for v in image.unique()} - {-1})
        area = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
        whole = torch.tensor([40.0, 288.0, 50.0])[target["labels"]]
        assert torch.equal(target["ignore"], area < 0.5 * whole)
        shapes.add(tuple(target["labels"].tolist()))
    assert len(shapes) > 2  # some crops lose objects
    assert torch.equal(PICTURE[1]["boxes"][0], torch.tensor([2.0, 3, 10, 8]))  # nothing was changed in place


def test_crop_reaches_every_place() -> None:
    image, target = _picture(7, 6, [])
    image = torch.arange(42, dtype=torch.uint8).view(1, 7, 6).expand(3, 7, 6)
    random = torch.Generator().manual_seed(0)
    first = {int(Crop(5)(image, target, random)[0][0, 0, 0]) for _ in range(200)}
    # Of the three rows and two columns that a part may begin at.
    assert first == {0, 1, 6, 7, 12, 13}


def test_crop_of_a_smaller_picture() -> None:
    image, target = Crop(25)(*PICTURE, GENERATOR)
    assert image.shape == (3, 20, 25)
    image, target = Crop(50)(*PICTURE, GENERATOR)
    assert torch.equal(image, PICTURE[0]) and torch.equal(target["boxes"], PICTURE[1]["boxes"])


def test_crowds_stay_ignored() -> None:
    image, target = _picture(20, 20, [[0, 0, 20, 20]])
    target["ignore"][:] = True
    for transform in (Crop(15, 0.0), Flip(1.0), Resize(40), ColourJitter(0.5)):
        assert transform(image, target, GENERATOR)[1]["ignore"].tolist() == [True]


def test_scale_jitter() -> None:
    random = torch.Generator().manual_seed(0)
    factors = torch.tensor([ScaleJitter(0.5, 2.0)(*PICTURE, random)[0].shape[2] / 30 for _ in range(300)])
    assert 0.5 <= factors.min() < 0.56 and 1.9 < factors.max() <= 2
    assert 0.4 < (factors < 1).float().mean() < 0.6
    image, target = ScaleJitter(2.0, 2.0)(*PICTURE, random)
    assert image.shape == (3, 40, 60)
    assert torch.equal(target["boxes"], 2 * PICTURE[1]["boxes"])


def test_colour_jitter() -> None:
    image = torch.randint(60, 120, (3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same, target = ColourJitter()(image, PICTURE[1], GENERATOR)
    assert torch.equal(same, image) and target["boxes"] is PICTURE[1]["boxes"]
    random = torch.Generator().manual_seed(3)
    share = (2 * torch.rand(3, generator=torch.Generator().manual_seed(3)) - 1).tolist()
    bright, _ = ColourJitter(brightness=0.5)(image, PICTURE[1], random)
    assert torch.equal(bright, (image * (1 + 0.5 * share[0])).round().to(torch.uint8))
    grey = image[:1].expand(3, 8, 9)
    still, _ = ColourJitter(saturation=1.0)(grey, PICTURE[1], random)
    assert (still.int() - grey.int()).abs().max() <= 1  # grey has no colour to lose
    random.manual_seed(3)
    contrast, _ = ColourJitter(contrast=1.0)(grey, PICTURE[1], random)
    assert contrast.float().std() == pytest.approx(grey.float().std().item() * (1 + share[1]), rel=0.05)
    assert contrast.float().mean() == pytest.approx(grey.float().mean().item(), abs=0.6)


def test_transforms_depend_on_the_generator_alone() -> None:
    chain = Chain(ScaleJitter(0.8, 1.25), Crop(16), Flip(), ColourJitter(0.4, 0.4, 0.4))
    images = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(images))
        images.append(chain(*PICTURE, torch.Generator().manual_seed(seed))[0])
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_no_boxes() -> None:
    image, target = _picture(20, 30, [])
    chain = Chain(Resize(25), ScaleJitter(0.8, 1.25), Crop(16), Flip(1.0), ColourJitter(0.4))
    image, target = chain(image, target, GENERATOR)
    assert target["boxes"].shape == (0, 4) and target["ignore"].shape == (0,)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Resize(0), "short must be at least 1"),
        (lambda: Resize(10, 9), "long at least short"),
        (lambda: ScaleJitter(0, 1), "0 < least ≤ most"),
        (lambda: ScaleJitter(2, 1), "0 < least ≤ most"),
        (lambda: Flip(1.5), "from 0 to 1, got 1.5"),
        (lambda: Crop(0), "size must be at least 1"),
        (lambda: Crop(5, 2), "visible from 0 to 1"),
        (lambda: ColourJitter(contrast=2), "from 0 to 1"),
    ],
)
def test_errors(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
