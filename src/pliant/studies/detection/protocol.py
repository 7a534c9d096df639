"""The protocol of the detection study: which network, trained on what and for how long, tested on what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pliant.data import Composed, Crowns, Target
from pliant.models import ModelRecipe
from pliant.studies import runner
from pliant.studies.detection.contestants import find
from pliant.train.recipe import DataRecipe, DetectorRecipe, OptimiserRecipe

DATA = ("composed", "crowns")
# Objects per training scene, more than in a test scene: a scene takes as long to train on whatever it shows, and what
# is learned from it grows with its objects.
OBJECTS = (4, 8)
SIDE = 128  # of a scene, and of the crops of crown tiles that are trained on, in pixels
TRAIN_SEED, TEST_SEED = 1000, 20_000  # of the scenes: seed n trains on those of TRAIN_SEED + n
BINS = 20  # parts of a run over which its losses are averaged

# Five of Fashion-MNIST's ten: shirts, pullovers and coats, and the kinds of shoes, are hard to tell apart at 14 to 60
# pixels, and a training of minutes would go into nothing else.
CLASSES = ("trouser", "pullover", "dress", "sneaker", "bag")

# The same in every network.
NETWORK = ModelRecipe(depth=10, width=16, stem="small", neck="fpn")
OPTIONS: dict[str, Any] = {
    "levels": (1, 2, 3),
    "channels": 32,
    "hidden": 128,
    "rpn_samples": 64,
    "pre_nms": (300, 300),
    "post_nms": (100, 50),
    "rois": 32,
    "positive_share": 0.5,
    "roi_canonical": 64.0,
}
ANCHORS = {"composed": ((16,), (28,), (48,), (80,)), "crowns": ((20,), (32,), (48,), (80,))}
ROI_HIDDEN = (128, 128)  # before the offsets and masks of the modulated pooling
MIMIC = {"count": 4, "size": 64}


@dataclass(frozen=True)
class Task(runner.Task):
    """One run: a contestant, the data it learns from and a seed."""

    contestant: str
    data: str
    seed: int


@dataclass(frozen=True)
class Protocol:
    """What all runs of a study share.

    Args:
        profile: "quick" or "full".
        recipe: how networks are trained on composed scenes; on crowns for as many steps.
        train: composed scenes to train on.
        test: composed scenes to test on.
        evaluations: how often a network is tested while it trains, the end included.
    """

    profile: str
    recipe: DetectorRecipe
    train: int
    test: int
    evaluations: int

    @classmethod
    def of(cls, profile: str) -> Protocol:
        """Return the protocol of a profile."""
        sizes = {"quick": (3, 3000, 250, 3), "full": (6, 3000, 500, 3)}
        if profile not in sizes:
            raise ValueError(f"detection: the profile must be one of {tuple(sizes)}, got {profile!r}")
        epochs, train, test, evaluations = sizes[profile]
        # The usual factor of 0.1 for the branches of version 2 is for fine-tuning; here they are trained from scratch.
        optimiser = OptimiserRecipe(
            "adamw", lr=1e-3, weight_decay=1e-2, offset_lr_mult=1.0, warmup=100, milestones=(0.7, 0.9)
        )
        recipe = DetectorRecipe(DataRecipe(), NETWORK, optimiser, epochs=epochs, batch=8)
        return cls(profile, recipe, train, test, evaluations)

    @property
    def epochs(self) -> int:
        """Return the passes over the composed scenes."""
        assert self.recipe.epochs is not None  # every profile names them
        return self.recipe.epochs

    @property
    def steps(self) -> int:
        """Return the steps of the optimiser, the same for all images."""
        return self.epochs * (self.train // self.recipe.batch)

    def recipe_of(self, task: Task, images: int, weights: Path | None = None) -> DetectorRecipe:
        """Return how a network is trained on so many `images`, its backbone starting from the file `weights`."""
        contestant = find(task.contestant)
        options = {**OPTIONS, "anchor_sizes": ANCHORS[task.data]}
        if contestant.roi_pool == "modulated":
            options["roi_hidden"] = ROI_HIDDEN
        model = replace(
            self.recipe.model,
            deform=contestant.deform,
            dilations=contestant.dilations,
            roi_pool=contestant.roi_pool,
            mimic=contestant.mimic,
            mimic_options=MIMIC if contestant.mimic else {},
            options=options,
            weights=None if weights is None else str(weights),
        )
        epochs = max(1, self.steps // max(1, images // self.recipe.batch))
        return replace(
            self.recipe,
            data=_data(task.data),
            model=model,
            steps=self.steps,
            seed=task.seed,
            evaluate_every=max(1, epochs // self.evaluations),
        )

    def settings(self) -> dict[str, Any]:
        """Return all that determines the results, except software, ready for JSON."""
        return {
            "study": "detection",
            "profile": self.profile,
            "epochs": self.epochs,
            "steps": self.steps,
            "recipe": asdict(self.recipe),
            "options": {**OPTIONS, "anchor_sizes": ANCHORS, "roi_hidden": ROI_HIDDEN},
            "mimic": MIMIC,
            "augmentation": {name: asdict(_data(name)) for name in DATA},
            "evaluations": self.evaluations,
            "scenes": {
                "train": self.train,
                "test": self.test,
                "side": SIDE,
                "objects": OBJECTS,
                "classes": CLASSES,
                "seeds": [TRAIN_SEED, TEST_SEED],
            },
        }

    def images(self, data: str, split: str, seed: int) -> Kept:
        """Return the images that a seed trains on, or those of the test."""
        if data == "crowns":
            return Kept(Crowns(split))
        if split == "train":
            return Kept(Composed(TRAIN_SEED + seed, self.train, "train", SIDE, objects=OBJECTS, classes=CLASSES))
        return Kept(Composed(TEST_SEED, self.test, "test", SIDE, classes=CLASSES))


class Kept(Dataset[tuple[Tensor, Target]]):
    """A data set that keeps every image it has read: drawing a scene takes a tenth of the time of a step."""

    def __init__(self, data: Composed | Crowns) -> None:
        self.data = data
        self.classes, self.category_ids, self.area_ranges = data.classes, data.category_ids, data.area_ranges
        self.kept: dict[int, tuple[Tensor, Target]] = {}
        self.truth: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        if index not in self.kept:
            self.kept[index] = self.data[index]
        return self.kept[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        return (self[index] for index in range(len(self)))

    def coco(self) -> dict[str, Any]:
        """Return the ground truth in COCO's form."""
        if self.truth is None:
            self.truth = self.data.coco()
        return self.truth


class Images:
    """The images of a process: the test sets, and the training set of the last seed."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._kept: dict[tuple[str, str], tuple[int, Kept]] = {}

    def of(self, task: Task) -> tuple[Kept, Kept]:
        """Return what a task trains and is tested on."""
        return self._get(task.data, "train", task.seed), self._get(task.data, "test", 0)

    def scenes(self, seed: int) -> Kept:
        """Return the composed scenes that a seed trains on."""
        return self._get("composed", "train", seed)

    def _get(self, data: str, split: str, seed: int) -> Kept:
        if self._kept.get((data, split), (None,))[0] != seed:
            self._kept[data, split] = (seed, self.protocol.images(data, split, seed))
        return self._kept[data, split][1]


def size_of(box: Tensor, ranges: dict[str, tuple[float, float]]) -> str:
    """Return "small", "medium" or "large" for a box (4,)."""
    area = float((box[2:] - box[:2]).prod())
    return next(name for name, (least, most) in ranges.items() if least <= area < most)


def _data(name: str) -> DataRecipe:
    if name == "crowns":
        return DataRecipe("crowns", scale=(0.7, 1.4), crop=SIDE, flip=0.5, colour=0.2)
    return DataRecipe("composed", size=SIDE, classes=CLASSES, objects=OBJECTS, flip=0.5)


def shown(image: Tensor) -> Tensor:
    """Return an image (3, H, W), uint8, as a network takes it: float32 in 0 … 1."""
    return image.to(torch.float32) / 255
