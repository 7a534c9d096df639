"""Recipes of detectors: data, network, optimiser, loop."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from pliant.models.recipe import ModelRecipe, recorded
from pliant.nn import parameter_groups

SHORT_SIDE = 256  # pixels to which a user's images are resized, unless a recipe says otherwise
SCENE = 128  # side of a composed scene in pixels, unless a recipe says otherwise
STEPS = 3000  # of a training for which neither steps nor epochs are given


@dataclass(frozen=True)
class DataRecipe:
    """Which images, and what is done to them.

    Args:
        source: composed scenes, photographs of tree crowns, or your own folder of images; coco is a folder in COCO's
            format.
        format: of a folder: COCO (a JSON file), YOLO (a txt file per image) or Pascal VOC (an xml file per image); auto
            detects it.
        images: folder of the training images (source folder).
        annotations: their annotations (source folder): the JSON file, or the folder of the txt or xml files; null looks
            for them beside the images.
        test_images: folder of the test images (source folder); that of the training images by default.
        test_annotations: annotations of the test images (source folder).
        hold_out: share of the training images that is kept for the test where no test images are named (source folder);
            with 0 nothing is evaluated.
        count: training scenes (source composed).
        test_count: test scenes (source composed).
        size: side of a scene (composed) or tile (crowns) in pixels; null takes the usual one.
        seed: of the scenes (source composed), and of the images held out (source folder).
        classes: names of the clothes in the scenes (source composed); null takes all ten.
        objects: least and most objects per training scene (source composed); test scenes have 1 to 4.
        short_side: images are resized to this shorter side in pixels, in training and whenever the detector is used; 0
            leaves them as they are. null is 256 for a folder, the side of a scene for composed scenes, so that objects
            in a photograph are as large as those that were learned, and 0 for tree crowns, tiles of large photographs.
        long_side: images are resized less where their longer side would exceed this many pixels; 0 is no limit.
        interpolation: how they are resized: ours, or as in torchvision, mmdetection (opencv) and detectron2 (pillow).
        scale: training images are then resized by a random factor between these two, log-uniform.
        crop: a random window of at most this many pixels each way is cut out of training images; 0 keeps all.
        flip: probability that a training image is mirrored.
        colour: largest change of brightness, contrast and saturation of training images, as a share.
    """

    source: Literal["composed", "crowns", "folder", "coco"] = "composed"
    format: Literal["auto", "coco", "yolo", "voc"] = "auto"
    images: str | None = None
    annotations: str | None = None
    test_images: str | None = None
    test_annotations: str | None = None
    hold_out: float = 0.0
    count: int = 2000
    test_count: int = 250
    size: int | None = None
    seed: int = 0
    classes: tuple[str, ...] | None = None
    objects: tuple[int, int] = (1, 4)
    short_side: int | None = None
    long_side: int = 0
    interpolation: Literal["antialiased", "torchvision", "opencv", "pillow"] = "antialiased"
    scale: tuple[float, float] = (1.0, 1.0)
    crop: int = 0
    flip: float = 0.5
    colour: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"data.hold_out must be at least 0 and less than 1, for example 0.2; got {self.hold_out}")

    @property
    def own(self) -> bool:
        """Return whether the images are the user's, in a folder."""
        return self.source in ("folder", "coco")

    @property
    def settled(self) -> DataRecipe:
        """Return the recipe with a number for `short_side`.

        >>> DataRecipe().settled.short_side, DataRecipe("folder").settled.short_side
        (128, 256)
        """
        if self.short_side is not None:
            return self
        scene = (self.size or SCENE) if self.source == "composed" else 0
        return replace(self, short_side=SHORT_SIDE if self.own else scene)


@dataclass(frozen=True)
class OptimiserRecipe:
    """How weights are updated.

    Args:
        name: SGD with momentum, or AdamW.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: on every weight.
        offset_lr_mult: learning rate of offset branches relative to lr; null takes each layer's own.
        warmup: steps in which the learning rate rises linearly to lr.
        milestones: fractions of all steps after which the learning rate is multiplied by gamma.
        gamma: factor at each milestone.
        clip: largest norm of the gradient of all weights together; null does not clip.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    offset_lr_mult: float | None = None
    warmup: int = 100
    milestones: tuple[float, ...] = (0.67, 0.92)
    gamma: float = 0.1
    clip: float | None = 10.0

    def __post_init__(self) -> None:
        if self.lr < 0 or self.warmup < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(
                "optimiser: lr and warmup must be at least 0 and clip above 0 or null, "
                f"got {self.lr}, {self.warmup} and {self.clip}"
            )

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`, as a fraction of `lr`.

        >>> recipe = OptimiserRecipe(warmup=4, milestones=(0.5,))
        >>> [recipe.rate(step, 10) for step in (0, 3, 4, 5, 9)]
        [0.25, 1.0, 1.0, 0.1, 0.1]
        """
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        passed = sum(step >= share * steps - 1e-6 for share in self.milestones)
        return float(warm * self.gamma**passed)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer; each parameter group holds under "base" the learning rate that `rate` scales."""
        groups = parameter_groups(model, self.lr, self.offset_lr_mult)
        for group in groups:
            group["base"] = group["lr"]
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)


# The first training, without arguments: five classes, because shirts, pullovers and coats, and the kinds of shoes, are
# hard to tell apart at 14 to 60 pixels; many objects per scene, because the time per scene does not depend on them.
FIRST_DATA = DataRecipe(
    count=3000, classes=("trouser", "pullover", "dress", "sneaker", "bag"), objects=(4, 8), hold_out=0.2
)
# A small Faster R-CNN whose last three stages and RoI pooling are deformable.
FIRST_MODEL = ModelRecipe(
    depth=10,
    width=16,
    stem="small",
    deform=(None, "v2", "v2", "v2"),
    roi_pool="modulated",
    options={
        "levels": [1, 2, 3], "channels": 32, "hidden": 128, "roi_hidden": [128, 128], "roi_canonical": 64.0,
        "anchor_sizes": [[16], [32], [64], [128]], "rpn_samples": 64, "pre_nms": [300, 300], "post_nms": [100, 50],
        "rois": 32, "positive_share": 0.5,
    },
)  # fmt: skip
# Offset branches learn at the full rate: the papers' smaller ones are for fine-tuning.
FIRST_OPTIMISER = OptimiserRecipe("adamw", lr=1e-3, weight_decay=1e-2, offset_lr_mult=1.0, milestones=(0.7, 0.9))


@dataclass(frozen=True)
class DetectorRecipe:
    """Everything that determines a trained detector, except software.

    The defaults train a small deformable detector on composed scenes in minutes, on a CPU.

    Args:
        data: which images.
        model: which network.
        optimiser: how weights are updated.
        epochs: passes over the training images; null is as many as 3000 steps need.
        steps: of the optimiser, instead of epochs.
        batch: images per step, of all processes together.
        workers: processes that read images, per training process; 0 reads in the training process itself.
        seed: of weights, order, augmentation and sampling.
        precision: float32, or bfloat16 where autocast uses it.
        evaluate_every: epochs between evaluations, null is an eighth of all; the end of training is always evaluated.
        save_every: steps between checkpoints, besides those at the end of every epoch; 0 writes only the latter.
        max_detections: most detections per image and class that count in evaluation.
        shard: split the network among processes (FSDP2) instead of keeping a copy in each.
    """

    data: DataRecipe = FIRST_DATA
    model: ModelRecipe = field(default_factory=lambda: FIRST_MODEL)
    optimiser: OptimiserRecipe = FIRST_OPTIMISER
    epochs: int | None = None
    steps: int | None = None
    batch: int = 8
    workers: int = 0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_every: int | None = None
    save_every: int = 0
    max_detections: int = 100
    shard: bool = False

    def __post_init__(self) -> None:
        # A checkpoint says with which sides it was trained.
        object.__setattr__(self, "data", self.data.settled)
        for name, least in (
            ("epochs", 1),
            ("steps", 1),
            ("batch", 1),
            ("workers", 0),
            ("evaluate_every", 1),
            ("save_every", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def length(self, images: int) -> tuple[int, int, int]:
        """Return the steps of an epoch over so many images, those of the training, and the epochs between evaluations.

        >>> DetectorRecipe(batch=8).length(3000), DetectorRecipe(batch=8, epochs=2).length(20)
        ((375, 3000, 1), (2, 4, 1))
        """
        epoch = images // self.batch
        if not epoch:
            raise ValueError(
                f"a batch of {self.batch} is larger than the data: {images} training images; "
                f"choose one of at most {images} (--batch)"
            )
        steps = self.steps or (STEPS if self.epochs is None else self.epochs * epoch)
        every = self.evaluate_every or max(1, steps // epoch // 8)
        return epoch, steps, every

    @classmethod
    def of(cls, values: dict[str, Any]) -> DetectorRecipe:
        """Return the recipe of which :func:`dataclasses.asdict` made `values`, directly or through JSON.

        Raises:
            ValueError: `values` were recorded by another version.
        """
        if not isinstance(values, dict):
            raise ValueError(f"the recipe is damaged: it is a {type(values).__name__} instead of settings")
        parts: dict[str, Any] = {"data": DataRecipe, "model": ModelRecipe, "optimiser": OptimiserRecipe}
        try:
            made = {name: recorded(part, values[name]) for name, part in parts.items()}
        except KeyError as error:
            raise ValueError(f"the recipe was recorded by another version: {error} is missing") from error
        return recorded(cls, {**values, **made})

    def differences(self, other: DetectorRecipe) -> list[str]:
        """Return the names of the settings in which two recipes differ, `data.flip` for example."""
        # JSON has no tuples: a recipe read from it is the same.
        mine, others = (_flat(json.loads(json.dumps(dataclasses.asdict(recipe)))) for recipe in (self, other))
        return sorted(name for name in mine.keys() | others.keys() if mine.get(name) != others.get(name))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and not name.endswith("options")
        flat.update(_flat(value, f"{prefix}{name}.") if nested else {prefix + name: value})
    return flat
