"""Composed scenes: clothes of Fashion-MNIST in many poses on real photographs, with exact boxes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pliant.data import drawing, photographs
from pliant.data.coco import Target, ground_truth
from pliant.data.drawing import Ranges
from pliant.data.fashion_mnist import CLASSES, FashionMNIST

RANGES = Ranges(scale=(0.6, 2.4), rotation=(0.0, 30.0), aspect=(1.0, 1.5), bend=(0.0, 0.08))
INK = 12  # of 255: a brighter pixel of Fashion-MNIST belongs to the object, unless it is isolated
OPAQUE = 0.5  # a pixel of a scene belongs to an object where its alpha is larger; boxes are the extents of such pixels
VISIBLE = 0.6  # the least fraction of an object's pixels that other objects leave visible
TRIES = 8  # places tried for an object before it is left out
# Typical side of a box, √(w·h), relative to 28 pixels times its scale. In 600 scenes, 33, 33 and 35 % of the boxes are
# then small, medium and large.
FILL = 0.85


class _Placed(NamedTuple):
    """An object in a scene: its label, the corner of its canvas, the mask of its pixels there, and their number."""

    label: int
    top: int
    left: int
    mask: Tensor
    pixels: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Return the rows and columns of the scene that its canvas covers."""
        H, W = self.mask.shape
        return slice(self.top, self.top + H), slice(self.left, self.left + W)


class Composed(Dataset[tuple[Tensor, Target]]):
    """Scenes of clothes on photographs: item i of a seed is always the same image, in any order and any process.

    "train" and "test" share no clothes and no photographs. A background is a crop of a photograph, shrunk to the scene.
    Objects are tinted at random and placed one after another, wholly inside the scene. An object that would hide more
    than 1 − `VISIBLE` of another is tried at `TRIES` places and then left out, and so is one larger than the scene: a
    scene may have fewer objects than were drawn. The box of an object is the extent of its visible pixels (alpha above
    `OPAQUE`): it is exact, and smaller than the object where another object covers its edge.

    Args:
        seed: of all random numbers.
        count: number of scenes.
        split: "train" or "test".
        size: side of a scene in pixels, at least 32.
        objects: (least, most) objects drawn per scene.
        ranges: of the poses; sizes are factors of 28 pixels. Objects lie anywhere, so `shift` must be 0.
        classes: some of Fashion-MNIST's ten names, None for all; labels are indices into it.
        folder: of the full Fashion-MNIST; None for the subset in the package.

    Raises:
        ValueError: an argument is out of its range.

    >>> image, target = Composed(seed=0, count=10)[3]
    >>> image.shape, image.dtype, target["boxes"].shape[1]
    (torch.Size([3, 128, 128]), torch.uint8, 4)
    """

    def __init__(
        self,
        seed: int,
        count: int,
        split: str = "train",
        size: int = 128,
        *,
        objects: tuple[int, int] = (1, 4),
        ranges: Ranges = RANGES,
        classes: Sequence[str] | None = None,
        folder: Path | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f'Composed: split must be "train" or "test", got {split!r}')
        if count < 0 or size < 32:
            raise ValueError(f"Composed: count must be at least 0 and size at least 32, got {count} and {size}")
        if not 0 <= objects[0] <= objects[1] < 255:
            raise ValueError(f"Composed: objects must be (least, most) with 0 ≤ least ≤ most < 255, got {objects}")
        if ranges.shift:
            raise ValueError(f"Composed: ranges.shift must be 0, objects lie anywhere already; got {ranges.shift}")
        self.classes = CLASSES if classes is None else tuple(classes)
        if not self.classes or len(set(self.classes)) < len(self.classes) or not set(self.classes) <= set(CLASSES):
            raise ValueError(f"Composed: classes must be different names out of {CLASSES}, got {self.classes}")
        self.category_ids = tuple(CLASSES.index(name) + 1 for name in self.classes)
        self.seed, self.count, self.split, self.size = seed, count, split, size
        self.objects, self.ranges, self.folder = objects, ranges, folder
        _clothes(split, folder)  # raises here if a file is missing

    def __len__(self) -> int:
        return self.count

    @drawing.one_thread()
    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return scene `index`: uint8 (3, size, size), and its target."""
        if not 0 <= index < self.count:
            raise IndexError(f"Composed: there are {self.count} scenes, got index {index}")
        random = torch.Generator().manual_seed(drawing.seed_of(self.seed, self.split, index))
        clothes, scene = _clothes(self.split, self.folder), self._background(random)
        # All numbers are drawn first, so that what happens to one object does not change the others.
        least, most = self.objects
        count = int(torch.randint(least, most + 1, (), generator=random))
        poses = drawing.draw(self.ranges, count, random)
        labels = torch.randint(len(self.classes), (count,), generator=random).tolist()
        which = torch.rand(count, generator=random).tolist()
        places = torch.rand(count, TRIES, 2, generator=random).tolist()
        tints = _tints(torch.rand(count, 3, generator=random))

        owner = torch.zeros(self.size, self.size, dtype=torch.uint8)  # 1 + index in `placed`, 0 is the photograph
        placed: list[_Placed] = []
        for k, label in enumerate(labels):
            choice = clothes[self.category_ids[label] - 1]
            layers = choice[int(which[k] * len(choice))] / 255
            grey, alpha = _trimmed(drawing.warp(layers, poses, k))
            mask = alpha > OPAQUE
            found = self._place(owner, mask, places[k], placed)
            if found is None:
                continue
            placed.append(_Placed(label, *found, mask, int(mask.sum())))
            here = placed[-1].window
            owner[here].masked_fill_(mask, len(placed))
            scene[:, here[0], here[1]].mul_(1 - alpha).add_(grey * tints[k, :, None, None])
        target = Target(
            boxes=_boxes(owner, placed),
            labels=torch.tensor([p.label for p in placed], dtype=torch.int64),
            ignore=torch.zeros(len(placed), dtype=torch.bool),
            image_id=index,
        )
        return scene.round_().to(torch.uint8), target

    @property
    def area_ranges(self) -> dict[str, tuple[float, float]]:
        """Return the bounds of "small", "medium" and "large" as areas of boxes in pixels: (from, to).

        COCO's 32² and 96² pixels are for images of 640×480. Here the log-uniform range of scales is divided into three
        equal parts, so that about a third of the objects falls into each.
        """
        least, most = self.ranges.scale
        step = (most / least) ** (1 / 3)
        low, high = ((28 * FILL * least * step**k) ** 2 for k in (1, 2))
        return {"small": (0.0, low), "medium": (low, high), "large": (high, 1e10)}

    def coco(self) -> dict[str, Any]:
        """Return the ground truth of all scenes in COCO's form; image ids are indices, `area` is the box's."""
        targets = [self[index][1] for index in range(self.count)]
        names = [f"{index:06}.png" for index in range(self.count)]
        return ground_truth(targets, [(self.size, self.size)] * self.count, names, self.classes, self.category_ids)

    def write(self, folder: Path) -> Path:
        """Write all scenes as ``images/*.png`` with ``annotations.json`` into `folder`; return the path of the latter.

        The format is COCO's, which `CocoDetection` and other tools read.
        """
        from PIL import Image

        folder = Path(folder)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        truth = self.coco()
        for index, entry in enumerate(truth["images"]):
            image = self[index][0].permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(image).save(folder / "images" / entry["file_name"])
        path = folder / "annotations.json"
        path.write_text(json.dumps(truth), encoding="utf-8")
        return path

    def _background(self, random: torch.Generator) -> Tensor:
        """Return a square crop of a photograph, mirrored or not, at the size of the scene: float32 in 0 … 255."""
        choice = photographs.load(self.split)
        which, side, top, left, mirror = torch.rand(5, generator=random).tolist()
        photograph = choice[int(which * len(choice))]
        _, H, W = photograph.shape
        most = min(H, W)
        least = min(most, self.size)
        crop = round(math.exp(math.log(least) + side * math.log(most / least)))
        top, left = int(top * (H - crop + 1)), int(left * (W - crop + 1))
        part = photograph[None, :, top : top + crop, left : left + crop]
        if crop != self.size:
            part = F.interpolate(part, (self.size, self.size), mode="bilinear", antialias=True)
        return (part.flip(-1) if mirror < 0.5 else part)[0].to(torch.float32, memory_format=torch.contiguous_format)

    def _place(
        self, owner: Tensor, mask: Tensor, places: list[list[float]], placed: list[_Placed]
    ) -> tuple[int, int] | None:
        """Return the first place (top, left) where `mask` leaves enough of every earlier object visible."""
        H, W = mask.shape
        if max(H, W) > self.size or not mask.any():
            return None
        for down, right in places:
            top, left = int(down * (self.size - H + 1)), int(right * (self.size - W + 1))
            under = owner[top : top + H, left : left + W][mask]
            hidden = under.bincount(minlength=len(placed) + 1)[1:].tolist()
            if all(
                not lost or int((owner[p.window] == k).sum()) - lost >= VISIBLE * p.pixels
                for k, (lost, p) in enumerate(zip(hidden, placed, strict=True), 1)
            ):
                return top, left
        return None


def _tints(numbers: Tensor) -> Tensor:
    """Return colours (N, 3), 0 … 255, from numbers (N, 3) in [0, 1): hue, saturation up to 0.6, value from 0.5."""
    hue, saturation, value = numbers[:, :1], numbers[:, 1:2], numbers[:, 2:]
    # The three channels of a pure colour are one hat function of the hue, shifted by thirds of the circle.
    distance = ((hue * 6 - torch.tensor((0.0, 2.0, 4.0)) + 3) % 6 - 3).abs_()
    return (1 - 0.6 * saturation * (distance - 1).clamp_(0, 1)) * (127.5 + 127.5 * value)


@functools.cache
def _clothes(split: str, folder: Path | None) -> tuple[Tensor, ...]:
    """Return the layers of all images of every class, made once per process: workers load their own."""
    data = FashionMNIST.load(folder)
    clothes = data.train if split == "train" else data.test
    with drawing.one_thread():
        return tuple(_layers(clothes.pictures[clothes.labels == label]) for label in range(len(CLASSES)))


def _layers(images: Tensor) -> Tensor:
    """Return grey and alpha (N, 2, H, W), uint8, of images (N, H, W).

    The object's pixels are those above `INK` that have at least two such neighbours.
    """
    layers = torch.empty(len(images), 2, *images.shape[1:], dtype=torch.uint8)
    for out, part in zip(layers.split(1000), images.split(1000), strict=True):
        ink = part > INK
        alpha = ink & (F.avg_pool2d(ink.float(), 3, 1, 1) * 9 > 2.5)
        out[:, 0], out[:, 1] = part * alpha, alpha * 255
    return layers


def _trimmed(layers: Tensor) -> Tensor:
    """Return the part of (grey, alpha) where alpha is not 0."""
    inked = layers[1] > 0
    (top, low), (left, right) = _extent(inked)
    return layers[:, top:low, left:right]


def _extent(mask: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the range of rows and the range of columns, (first, end), that a mask (H, W) covers."""
    ends = []
    for dim in (1, 0):
        line = mask.any(dim).nonzero()[:, 0].tolist()
        ends.append((line[0], line[-1] + 1) if line else (0, 0))
    return ends[0], ends[1]


def _boxes(owner: Tensor, placed: list[_Placed]) -> Tensor:
    """Return the boxes (n, 4) around the visible pixels of each object."""
    boxes = []
    for k, object in enumerate(placed, 1):
        (top, low), (left, right) = _extent(owner[object.window] == k)
        boxes.append((object.left + left, object.top + top, object.left + right, object.top + low))
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
