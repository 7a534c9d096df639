"""Recipes of detectors: data, network, optimiser, loop."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from pliant.models.recipe import ModelRecipe, recorded
from pliant.nn import parameter_groups


@dataclass(frozen=True)
class DataRecipe:
    """Which images, and what is done to them.

    Args:
        source: composed scenes, photographs of tree crowns, or a folder of images with annotations in COCO's format.
        images: folder of the training images (source coco).
        annotations: their annotation file (source coco).
        test_images: folder of the test images (source coco); that of the training images by default.
        test_annotations: annotation file of the test images (source coco); none means no evaluation.
        count: training scenes (source composed).
        test_count: test scenes (source composed).
        size: side of a scene (composed) or tile (crowns) in pixels; null takes the usual one.
        seed: of the scenes (source composed).
        short_side: images are resized to this shorter side in pixels; 0 leaves them as they are.
        long_side: images are resized less where their longer side would exceed this many pixels; 0 is no limit.
        interpolation: how they are resized: ours, or as in torchvision, mmdetection (opencv) and detectron2 (pillow).
        scale: training images are then resized by a random factor between these two, log-uniform.
        crop: a random window of at most this many pixels each way is cut out of training images; 0 keeps all.
        flip: probability that a training image is mirrored.
        colour: largest change of brightness, contrast and saturation of training images, as a share.
    """

    source: Literal["composed", "crowns", "coco"] = "composed"
    images: str | None = None
    annotations: str | None = None
    test_images: str | None = None
    test_annotations: str | None = None
    count: int = 2000
    test_count: int = 250
    size: int | None = None
    seed: int = 0
    short_side: int = 0
    long_side: int = 0
    interpolation: Literal["antialiased", "torchvision", "opencv", "pillow"] = "antialiased"
    scale: tuple[float, float] = (1.0, 1.0)
    crop: int = 0
    flip: float = 0.5
    colour: float = 0.0


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


@dataclass(frozen=True)
class DetectorRecipe:
    """Everything that determines a trained detector, except software.

    Args:
        data: which images.
        model: which network.
        optimiser: how weights are updated.
        epochs: passes over the training images.
        steps: of the optimiser, instead of epochs.
        batch: images per step, of all processes together.
        workers: processes that read images, per training process; 0 reads in the training process itself.
        seed: of weights, order, augmentation and sampling.
        precision: float32, or bfloat16 where autocast uses it.
        evaluate_every: epochs between evaluations; the end of training is always evaluated.
        save_every: steps between checkpoints, besides those at the end of every epoch; 0 writes only the latter.
        max_detections: most detections per image and class that count in evaluation.
        shard: split the network among processes (FSDP2) instead of keeping a copy in each.
    """

    data: DataRecipe = DataRecipe()
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optimiser: OptimiserRecipe = OptimiserRecipe()
    epochs: int = 12
    steps: int | None = None
    batch: int = 16
    workers: int = 0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_every: int = 1
    save_every: int = 0
    max_detections: int = 100
    shard: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("workers", 0), ("evaluate_every", 1), ("save_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    @classmethod
    def of(cls, values: dict[str, Any]) -> DetectorRecipe:
        """Return the recipe of which :func:`dataclasses.asdict` made `values`, directly or through JSON.

        Raises:
            ValueError: `values` were recorded by another version.
        """
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
