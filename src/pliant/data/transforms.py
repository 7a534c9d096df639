"""Transforms of images with boxes: ``(image, target, generator) → (image, target)``; only the generator is random.

Images are uint8 (3, H, W); targets are as in :mod:`pliant.data.coco`. Inputs are not changed in place. Every transform
draws a fixed number of values from its generator, whatever they are, so the transforms after it do not depend on them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.data.coco import Target
from pliant.data.loader import Transform

# How images are made smaller or larger: by us, in torchvision's detectors, in mmdetection and in detectron2.
INTERPOLATIONS = ("antialiased", "torchvision", "opencv", "pillow")
GREY = (0.299, 0.587, 0.114)  # BT.601: the brightness of a colour


class Chain:
    """Apply transforms one after another."""

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        for transform in self.transforms:
            image, target = transform(image, target, generator)
        return image, target


class Resize:
    """Resize the shorter side to `short` pixels, or to fewer where the longer side would exceed `long`.

    Interpolation is bilinear. Boxes are scaled by the exact ratio of the sides. The image keeps its dtype, and where it
    is uint8 the values are rounded.

    Args:
        short: pixels, at least 1.
        long: pixels, at least `short`; None for no limit.
        interpolation: "antialiased", where the image shrinks; as it is in "torchvision"'s detectors, without
            antialiasing and with sides rounded down; or done by "opencv" or "pillow", as in mmdetection and detectron2.
            Floating-point images are resized by torch in all four, since the last two know only uint8.
    """

    def __init__(self, short: int, long: int | None = None, interpolation: str = "antialiased") -> None:
        if short < 1 or (long is not None and long < short):
            raise ValueError(f"Resize: short must be at least 1 and long at least short, got {short} and {long}")
        if interpolation not in INTERPOLATIONS:
            names = ", ".join(map(repr, INTERPOLATIONS))
            raise ValueError(f"Resize: interpolation must be one of {names}, got {interpolation!r}")
        self.short, self.long, self.interpolation = short, long, interpolation

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        H, W = image.shape[1:]
        factor = self.short / min(H, W)
        if self.long is not None:
            factor = min(factor, self.long / max(H, W))
        return _resized(image, target, factor, self.interpolation)


class ScaleJitter:
    """Resize by a factor from `least` to `most`, log-uniform.

    Args:
        least: greater than 0.
        most: at least `least`.
    """

    def __init__(self, least: float, most: float) -> None:
        if not 0 < least <= most < math.inf:
            raise ValueError(f"ScaleJitter: 0 < least ≤ most is needed, got {least} and {most}")
        self.least, self.most = least, most

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        share = torch.rand((), generator=generator).item()
        return _resized(image, target, self.least * (self.most / self.least) ** share)


class Flip:
    """Flip the image horizontally with this `probability`."""

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"Flip: the probability must be from 0 to 1, got {probability}")
        self.probability = probability

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        if torch.rand((), generator=generator).item() >= self.probability:
            return image, target
        W = image.shape[2]
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        return image.flip(2), {**target, "boxes": torch.stack((W - x2, y1, W - x1, y2), 1)}


class Crop:
    """Cut out a part of at most `size` × `size` pixels at a random place.

    Boxes are clipped to the part. A box that keeps less than `visible` of its area is marked ignore, since what is left
    may not be recognisable; a box outside is removed.

    Args:
        size: pixels, at least 1. A shorter side stays as it is.
        visible: fraction of a box's area, from 0 to 1.
    """

    def __init__(self, size: int, visible: float = 0.4) -> None:
        if size < 1 or not 0 <= visible <= 1:
            raise ValueError(f"Crop: size must be at least 1 and visible from 0 to 1, got {size} and {visible}")
        self.size, self.visible = size, visible

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        H, W = image.shape[1:]
        down, right = torch.rand(2, generator=generator).tolist()
        h, w = min(H, self.size), min(W, self.size)
        top, left = int(down * (H - h + 1)), int(right * (W - w + 1))
        part = image[:, top : top + h, left : left + w].contiguous()
        return part, cut_out(target, (left, top, left + w, top + h), self.visible)


class ColourJitter:
    """Multiply brightness, then contrast around the mean grey, then saturation, by random factors within 1 ± these.

    Args:
        brightness: from 0 to 1.
        contrast: from 0 to 1.
        saturation: from 0 to 1.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> None:
        self.amounts = torch.tensor((brightness, contrast, saturation))
        if not ((self.amounts >= 0) & (self.amounts <= 1)).all():
            raise ValueError(f"ColourJitter: all amounts must be from 0 to 1, got {self.amounts.tolist()}")

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        numbers = torch.rand(3, generator=generator)
        brightness, contrast, saturation = (1 + self.amounts * (2 * numbers - 1)).tolist()
        changed = image.float() * brightness
        mean = _grey(changed).mean()
        changed = mean + contrast * (changed - mean)
        grey = _grey(changed)
        changed = grey + saturation * (changed - grey)
        return changed.round_().clamp_(0, 255).to(torch.uint8), target


def cut_out(target: Target, window: tuple[int, int, int, int], visible: float) -> Target:
    """Clip a target to a window x1 y1 x2 y2 and return it in the window's own pixels; see :class:`Crop`."""
    x1, y1, x2, y2 = window
    boxes = target["boxes"]
    low = boxes.new_tensor((x1, y1))
    inside = boxes.view(-1, 2, 2).clamp(low, boxes.new_tensor((x2, y2)))
    left, whole = (b.diff(dim=1).prod(2)[:, 0] for b in (inside, boxes.view(-1, 2, 2)))
    kept = left > 0
    return {
        **target,
        "boxes": (inside - low).view(-1, 4)[kept],
        "labels": target["labels"][kept],
        "ignore": (target["ignore"] | (left < visible * whole))[kept],
    }


def _resized(image: Tensor, target: Target, factor: float, interpolation: str = "antialiased") -> tuple[Tensor, Target]:
    H, W = image.shape[1:]
    h, w = (max(1, _side(side * factor, interpolation)) for side in (H, W))
    if (h, w) == (H, W):
        return image, target
    if image.dtype == torch.uint8 and interpolation in ("opencv", "pillow"):
        resized = _by_library(image, h, w, interpolation)
    elif interpolation in ("antialiased", "pillow"):
        resized = F.interpolate(image[None], (h, w), mode="bilinear", antialias=True)[0]
    else:
        resized = F.interpolate(image[None], (h, w), mode="bilinear")[0]
    return resized, {**target, "boxes": target["boxes"] * torch.tensor((w / W, h / H, w / W, h / H))}


def _side(side: float, interpolation: str) -> int:
    """Return a scaled side in whole pixels, rounded as the library does."""
    if interpolation == "antialiased":
        return round(side)
    return int(side if interpolation == "torchvision" else side + 0.5)


def _by_library(image: Tensor, h: int, w: int, interpolation: str) -> Tensor:
    """Return an image (3, H, W), uint8, resized by OpenCV or Pillow, whose integers round in their own way."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    if interpolation == "opencv":
        try:
            import cv2
        except ModuleNotFoundError as error:
            sentence = "Resize: images are resized by OpenCV, as in mmdetection: pip install opencv-python-headless"
            raise ModuleNotFoundError(sentence, name="cv2") from error
        resized = torch.from_numpy(cv2.resize(array, (w, h), interpolation=cv2.INTER_LINEAR))
    else:
        import numpy as np
        from PIL import Image

        resized = torch.from_numpy(np.array(Image.fromarray(array).resize((w, h), Image.Resampling.BILINEAR)))
    return resized.permute(2, 0, 1).contiguous()


def _grey(image: Tensor) -> Tensor:
    """Return the brightness (1, H, W) of an image (3, H, W)."""
    return (image * image.new_tensor(GREY)[:, None, None]).sum(0, keepdim=True)
