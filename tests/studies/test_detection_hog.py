from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage.feature import hog as skimage_hog
from torch import Tensor

from pliant.studies.detection import hog
from pliant.studies.detection.hog import HogMachine


class Scenes(list[tuple[Tensor, dict[str, Any]]]):
    """Grey noise with one or two objects, a ring (label 0) or a cross (label 1), of 14 to 26 pixels."""

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(count):
            picture = random.normal(120, 12, (64, 64))
            boxes, labels = [], []
            for half in range(random.integers(1, 3)):
                side, label = int(random.integers(14, 27)), int(random.integers(2))
                y, x = int(random.integers(64 - side)), int(random.integers(32 - side)) + 32 * half
                at = np.linspace(-1, 1, side)
                radius = np.hypot(at[:, None], at)
                near = np.minimum(abs(at[:, None]), abs(at)) < 0.2
                ink = (abs(radius - 0.8) < 0.2) if label == 0 else np.broadcast_to(near, (side, side))
                picture[y : y + side, x : x + side][ink] += 90
                boxes.append([x, y, x + side, y + side])
                labels.append(label)
            image = torch.from_numpy(picture.clip(0, 255).astype(np.uint8))[None].repeat(3, 1, 1)
            target = {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor(labels),
                "ignore": torch.zeros(len(boxes), dtype=torch.bool),
            }
            self.append((image, target))


@pytest.fixture(scope="module")
def machine() -> HogMachine:
    return HogMachine(2, 0).fit(Scenes(30, 0))


def test_blocks_are_those_of_scikit_image() -> None:
    picture = np.random.default_rng(0).random((32, 45, 3)).astype(np.float32)
    expected = skimage_hog(
        picture, hog.ORIENTATIONS, (hog.CELL,) * 2, (hog.BLOCK,) * 2, feature_vector=False, channel_axis=-1
    )
    expected = torch.from_numpy(expected).flatten(2).permute(2, 0, 1).float()
    # Its normalisation adds 1e-5 to unequally scaled sums.
    torch.testing.assert_close(hog.histograms(picture), expected, atol=1e-4, rtol=1e-3)


def test_finds_what_it_was_shown(machine: HogMachine) -> None:
    right, count = 0, 0
    for image, target in Scenes(12, 1):
        found = machine.detect(image)
        assert bool((found["scores"].diff() <= 0).all())
        overlap = hog._overlap(found["boxes"][: len(target["boxes"])], target["boxes"])
        same = found["labels"][: len(target["boxes"]), None] == target["labels"]
        right += int(((overlap > 0.5) & same).any(0).sum())
        count += len(target["boxes"])
    assert right >= 0.8 * count


def test_same_seed_same_machine(machine: HogMachine) -> None:
    image = Scenes(1, 2)[0][0]
    again = HogMachine(2, 0).fit(Scenes(30, 0))
    restored = HogMachine.load(machine.state())
    for other in (again, restored):
        for key, value in machine.detect(image).items():
            torch.testing.assert_close(other.detect(image)[key], value, rtol=0, atol=0)
    assert machine.parameters == sum((machine.classes + 4) * (window.size + 1) for window in machine.windows)


def test_boxes_of_windows(machine: HogMachine) -> None:
    """Every level's windows are as large as its scale says, and cover the image with its border."""
    found = machine.slide(torch.zeros(3, 64, 64, dtype=torch.uint8))
    assert len(found.blocks) == len(machine.factors) > 1
    for factor, boxes in zip(machine.factors, found.boxes, strict=True):
        pixel = 64 / round(64 * factor)
        for window, around in zip(machine.windows, boxes, strict=True):
            sides = around[:, 2:] - around[:, :2]
            expected = torch.tensor([window.columns, window.rows]) * hog.CELL * pixel
            torch.testing.assert_close(sides, expected.expand(len(sides), 2))
            if len(around):
                assert float(around.min()) == pytest.approx(-hog.BORDER * hog.CELL * pixel)
                assert float(around.max()) >= 64


def test_regression_is_inverted() -> None:
    windows, boxes = torch.tensor([[0.0, 0, 10, 20], [5, 5, 9, 9]]), torch.tensor([[2.0, 1, 9, 24], [4, 6, 10, 11]])
    torch.testing.assert_close(hog._moved(windows, hog._deltas(windows, boxes)), boxes)


def test_windows_are_those_of_objects_that_count() -> None:
    """What is left of an object at the border of a tile is ignored, and is no shape to look for."""
    whole, with_rests = Scenes(6, 0), Scenes(6, 0)
    for _, target in with_rests:
        target["boxes"] = torch.cat([target["boxes"], torch.tensor([[0.0, 0, 60, 4]])])
        target["labels"] = torch.cat([target["labels"], torch.tensor([0])])
        target["ignore"] = torch.cat([target["ignore"], torch.tensor([True])])
    machines = [HogMachine(2, 0).fit(scenes, rounds=1) for scenes in (whole, with_rests)]
    assert machines[0].windows == machines[1].windows
    assert machines[0].factors == machines[1].factors


def test_few_images_give_as_much_background_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hog, "NEGATIVES", 240)
    learned: list[int] = []

    def learn(machine: HogMachine, examples: list[Any]) -> None:
        learned.append(sum(int((label == machine.classes).sum()) for of in examples for label in of.labels))

    monkeypatch.setattr(HogMachine, "_learn", learn)
    for count in (3, 12):
        HogMachine(2, 0).fit(Scenes(count, 0), rounds=1)
    assert learned == [240, 240]


def test_nothing_to_find() -> None:
    machine = HogMachine(2, 0)
    empty = Scenes(2, 0)
    for _, target in empty:
        target.update(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), ignore=torch.zeros(0).bool())
    with pytest.raises(ValueError, match="no training image has an object"):
        machine.fit(empty)
