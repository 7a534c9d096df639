"""The data sets and transforms that a recipe describes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pliant.data import (
    Chain,
    ColourJitter,
    Composed,
    Crop,
    Crowns,
    Detection,
    Flip,
    ScaleJitter,
    Transform,
)
from pliant.data.folders import read
from pliant.data.part import held_out
from pliant.models import predictor
from pliant.train.recipe import SCENE, DataRecipe


def build_data(recipe: DataRecipe, split: Literal["train", "test"]) -> Detection | None:
    """Return the training or test data of a recipe; None if the recipe has no test images.

    Raises:
        ValueError: the recipe lacks a setting that its source needs.
        OSError: a file does not exist.
    """
    if recipe.source == "composed":
        count = recipe.count if split == "train" else recipe.test_count
        objects = recipe.objects if split == "train" else (1, 4)
        size = recipe.size or SCENE
        return Composed(recipe.seed, count, split, size, objects=objects, classes=recipe.classes) if count else None
    if recipe.source == "crowns":
        return Crowns(split, tile=recipe.size) if recipe.size else Crowns(split)
    return _folder(recipe, split)


def _folder(recipe: DataRecipe, split: Literal["train", "test"]) -> Detection | None:
    """Return the images of a folder; a share of them is the test where no test images are named."""
    format = "coco" if recipe.source == "coco" else recipe.format
    named = recipe.test_annotations is not None or recipe.test_images not in (None, recipe.images)
    if split == "test" and named:
        images = recipe.test_images or recipe.images
        if images is None:
            raise ValueError("the test images need a folder: --data.test-images DIR")
        return read(Path(images), _path(recipe.test_annotations), format)
    if recipe.images is None:
        raise ValueError("say where your images are: --images DIR, and with COCO's format --annotations FILE")
    if split == "test" and not recipe.hold_out:
        return None
    data = read(Path(recipe.images), _path(recipe.annotations), format)
    if named or not recipe.hold_out:
        return data
    train, test = held_out(data, recipe.hold_out, recipe.seed)
    return train if split == "train" else test


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


def resizing(recipe: DataRecipe) -> Transform | None:
    """Return the resizing of every image; None leaves images as they are."""
    return predictor.resizing(recipe.settled.short_side or 0, recipe.long_side, recipe.interpolation)


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
