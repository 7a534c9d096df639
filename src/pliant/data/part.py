"""A part of a data set, and a data set divided into a part to train on and one to test on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pliant.data.coco import AREA_RANGES, Target
from pliant.data.drawing import seed_of
from pliant.data.loader import Detection


class Part(Dataset[tuple[Tensor, Target]]):
    """Some images of a data set, in the order of `indices`.

    Args:
        data: the whole.
        indices: of its images.
        problems: sentences about the data, such as `CocoDetection` has.
    """

    def __init__(self, data: Detection, indices: Sequence[int], problems: Sequence[str] = ()) -> None:
        self.data, self.indices, self.problems = data, tuple(indices), list(problems)
        self.classes, self.category_ids = data.classes, data.category_ids
        self.area_ranges = getattr(data, "area_ranges", AREA_RANGES)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.data[self.indices[index]]

    @property
    def objects(self) -> int:
        """Return the number of boxes that are not crowds."""
        return sum(not annotation["iscrowd"] for annotation in self.coco()["annotations"])

    def coco(self) -> dict[str, Any]:
        """Return the ground truth of these images in COCO's form."""
        truth = self.data.coco()
        images = [truth["images"][index] for index in self.indices]
        kept = {image["id"] for image in images}
        annotations = [annotation for annotation in truth["annotations"] if annotation["image_id"] in kept]
        return {**truth, "images": images, "annotations": annotations}


def held_out(data: Detection, share: float, seed: int) -> tuple[Part, Part]:
    """Divide a data set into a part to train on and one to test on, at random and the same for every run.

    Args:
        data: the whole.
        share: of the images that the test gets, at least one and never all.
        seed: of the choice.

    Raises:
        ValueError: there are fewer than two images.

    >>> from pliant.data import Composed
    >>> train, test = held_out(Composed(seed=0, count=10), 0.2, seed=0)
    >>> len(train), len(test), set(train.indices) & set(test.indices)
    (8, 2, set())
    """
    count = len(data)
    if count < 2:
        raise ValueError(
            f"one image cannot be divided into training and test images ({count} found); name test images, or evaluate "
            "nothing with --data.hold-out 0"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of("held out", seed))).tolist()
    cut = min(max(1, round(share * count)), count - 1)
    # One of the two parts tells the faults of their common file.
    return Part(data, sorted(order[cut:]), getattr(data, "problems", ())), Part(data, sorted(order[:cut]))
