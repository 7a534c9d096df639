"""The data sets and transforms that a recipe describes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pliant.data import (
    Chain,
    CocoDetection,
    ColourJitter,
    Composed,
    Crop,
    Crowns,
    Detection,
    Flip,
    ScaleJitter,
    Transform,
)
from pliant.models import predictor
from pliant.train.recipe import DataRecipe


def build_data(recipe: DataRecipe, split: Literal["train", "test"]) -> Detection | None:
    """Return the training or test data of a recipe; None if the recipe names no test images.

    Raises:
        ValueError: the recipe lacks a setting that its source needs.
        OSError: a file does not exist.
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
        raise ValueError("source coco needs data.images, a folder, and data.annotations, a file in COCO's format")
    return CocoDetection(Path(images), Path(annotations))


def resizing(recipe: DataRecipe) -> Transform | None:
    """Return the resizing of every image; None leaves images as they are."""
    return predictor.resizing(recipe.short_side, recipe.long_side, recipe.interpolation)


def augmentation(recipe: DataRecipe) -> Transform:
    """Return the transforms of training images, in this order: resizing, scale, crop, mirroring, colour."""
    resize = resizing(recipe)
    steps = [] if resize is None else [resize]
    if tuple(recipe.scale) != (1.0, 1.0):
        steps.append(ScaleJitter(*recipe.scale))
    if recipe.crop:
        steps.append(Crop(recipe.crop))
    if recipe.flip:
        steps.append(Flip(recipe.flip))
    if recipe.colour:
        steps.append(ColourJitter(recipe.colour, recipe.colour, recipe.colour))
    return Chain(*steps)
