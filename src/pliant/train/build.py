"""What a recipe names: data sets, transforms, networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pliant.data import (
    Chain,
    CocoDetection,
    ColourJitter,
    Composed,
    Crop,
    Crowns,
    Detection,
    Flip,
    Resize,
    ScaleJitter,
    Transform,
)
from pliant.models import RFCN, FasterRCNN, FeatureMimic, ResNet, load_imagenet
from pliant.train.recipe import DataRecipe, DetectorRecipe, ModelRecipe

# How RoIs may be pooled, the plain way first.
POOLS = {"faster_rcnn": ("align", "deform", "modulated"), "rfcn": ("ps", "deform_ps")}


def build_data(recipe: DataRecipe, split: Literal["train", "test"]) -> Detection | None:
    """Return one part of a recipe's data; None where the recipe names no test pictures.

    Raises:
        ValueError: the recipe lacks what its source needs.
        OSError: there are no such files.
    """
    if recipe.source == "composed":
        count = recipe.count if split == "train" else recipe.test_count
        return Composed(recipe.seed, count, split, recipe.size or 128) if count else None
    if recipe.source == "crowns":
        return Crowns(split, tile=recipe.size) if recipe.size else Crowns(split)
    images, annotations = recipe.images, recipe.annotations
    if split == "test":
        images, annotations = recipe.test_images or recipe.images, recipe.test_annotations
        if annotations is None:
            return None
    if images is None or annotations is None:
        raise ValueError("source coco needs data.images, a folder, and data.annotations, a file in COCO's form")
    return CocoDetection(Path(images), Path(annotations))


def resizing(recipe: DataRecipe) -> Transform | None:
    """Return what happens to the size of every picture, if anything."""
    return Resize(recipe.short_side, recipe.long_side or None) if recipe.short_side else None


def augmentation(recipe: DataRecipe) -> Transform:
    """Return what happens to training pictures, in this order: resizing, scale, crop, mirroring, colour."""
    steps: list[Transform] = []
    if recipe.short_side:
        steps.append(Resize(recipe.short_side, recipe.long_side or None))
    if tuple(recipe.scale) != (1.0, 1.0):
        steps.append(ScaleJitter(*recipe.scale))
    if recipe.crop:
        steps.append(Crop(recipe.crop))
    if recipe.flip:
        steps.append(Flip(recipe.flip))
    if recipe.colour:
        steps.append(ColourJitter(recipe.colour, recipe.colour, recipe.colour))
    return Chain(*steps)


def build_detector(recipe: ModelRecipe, classes: int, *, seed: int = 0, pretrained: bool = True) -> nn.Module:
    """Return the detector of a recipe; the same seed gives the same weights, and torch's generator is left alone.

    Args:
        recipe: which.
        classes: how many, without background.
        seed: of the weights.
        pretrained: load what `recipe.weights` names into the backbone.

    Raises:
        ValueError: settings that do not go together, or that the network does not have.
        OSError: there is no such file of weights.
    """
    pools = POOLS[recipe.detector]
    pool = recipe.roi_pool or pools[0]
    if pool not in pools:
        raise ValueError(f"model.roi_pool of {recipe.detector} must be one of {', '.join(pools)}, got {pool}")
    if recipe.mimic and recipe.detector != "faster_rcnn":
        raise ValueError(f"model.mimic needs faster_rcnn, got {recipe.detector}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = ResNet(
            recipe.depth, deform=recipe.deform, offset_groups=recipe.offset_groups, mask_scale=recipe.mask_scale,
            width=recipe.width, stem=recipe.stem, frozen_bn=recipe.frozen_bn, frozen_stages=recipe.frozen_stages,
            stride=recipe.stride, dilations=recipe.dilations,
        )  # fmt: skip
        try:
            model = _detector(recipe, backbone, classes, pool)
        except TypeError as error:
            raise ValueError(f"model.options or model.mimic_options: {error}") from error
    if recipe.weights and pretrained:
        load_imagenet(model, Path(recipe.weights))
    return model


def _detector(recipe: ModelRecipe, backbone: ResNet, classes: int, pool: str) -> nn.Module:
    if recipe.detector == "rfcn":
        return RFCN(backbone, classes, roi_pool=pool, **recipe.options)
    mimic = None
    if recipe.mimic:
        drawn: dict[str, Any] = {"foreground": recipe.mimic != "background", "background": recipe.mimic != "foreground"}
        mimic = FeatureMimic(**drawn, **recipe.mimic_options)
    return FasterRCNN(backbone, classes, neck=recipe.neck, roi_pool=pool, mimic=mimic, **recipe.options)


def load_detector(state: dict[str, Any]) -> nn.Module:
    """Return the detector of a checkpoint, in evaluation mode."""
    recipe = DetectorRecipe.of(state["recipe"])
    model = build_detector(recipe.model, len(state["classes"]), pretrained=False)
    model.load_state_dict(state["model"])
    return model.eval()
