"""Detection data in COCO's format: read from files, and written."""

from __future__ import annotations

import json
import math
import warnings
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pliant.data.images import image_size, read_image

# The objects in an image: boxes (n, 4) float32 x1 y1 x2 y2, labels (n,) int64, ignore (n,) bool, image_id int.
Target = dict[str, Any]
# Least and most area of objects that COCO calls small, medium and large, in square pixels.
LARGEST = 1e10
AREA_RANGES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, LARGEST)}
SLACK = 1.0  # pixels by which a box may extend beyond its image without being mentioned


class CocoDetection(Dataset[tuple[Tensor, Target]]):
    """Images of a folder with an annotation file in COCO's format.

    Labels number the categories in the order of their ids, which are kept for `coco()`. Crowds (`iscrowd`, or `ignore`
    of other tools) are marked ignore. Images without annotations are kept as background.

    Faulty entries of the file are left out, and one warning is given; `problems` has a sentence for each of them, with
    file, id and what was done:

    * an image that is missing, listed twice, or listed without integer id or file name: left out;
    * an annotation without box, image or category, or of an image or category that is not listed: left out;
    * a box that is not four finite numbers, has no area, or lies outside of its image: left out;
    * a box that extends beyond its image: cut (mentioned beyond `SLACK` pixels).

    Reading an item whose image file is broken raises `BrokenImage`; `batches` continues with the next image.

    Args:
        images: folder to which the file names are relative.
        annotations: JSON file.

    Attributes:
        classes: names of the labels.
        category_ids: their ids in the file.
        area_ranges: COCO's small, medium and large, in square pixels.
        problems: sentences.

    Raises:
        FileNotFoundError: the folder or the file is missing.
        ValueError: the file is not in COCO's format, or nothing in it can be used.
    """

    area_ranges = AREA_RANGES

    def __init__(self, images: Path, annotations: Path) -> None:
        self.images, self.annotations = Path(images), Path(annotations)
        truth = _read(self.annotations)
        if not self.images.is_dir():
            raise FileNotFoundError(f"coco: the folder {self.images} is missing; name the one with the images")
        self.problems: list[str] = []
        self._left_out: set[int] = set()
        names = self._categories(truth["categories"])
        self.category_ids = tuple(sorted(names))
        self.classes = tuple(names[id] for id in self.category_ids)
        files = self._files(truth["images"])
        if not files:
            first = f"; {self.problems[0]}" if self.problems else ""
            raise ValueError(f"coco: {self.annotations} has no image that is in {self.images}{first}")
        self._ids = tuple(files)
        self._names = tuple(name for name, _ in files.values())
        self._sizes = tuple(size for _, size in files.values())
        self._targets, self._areas = self._boxes(truth["annotations"])
        if self.problems:
            more = f" and {len(self.problems) - 1} more, see .problems" if len(self.problems) > 1 else ""
            warnings.warn(f"coco: {self.problems[0]}{more}", stacklevel=2)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return image `index`, uint8 (3, H, W), and its target.

        Raises:
            FileNotFoundError, BrokenImage: the file is missing, broken, or of another size.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"coco: {self.annotations} has {len(self)} images, got index {index}")
        image = read_image(self.images / self._names[index], self._sizes[index])
        return image, {key: v.clone() if isinstance(v, Tensor) else v for key, v in self._targets[index].items()}

    def coco(self) -> dict[str, Any]:
        """Return the ground truth that is used, in COCO's format, with the ids of images and categories of the file.

        Annotations are numbered anew; their areas are those of the file, or of the box if the file has none.
        """
        return ground_truth(self._targets, self._sizes, self._names, self.classes, self.category_ids, self._areas)

    def _problem(self, what: str, done: str = "left out") -> None:
        self.problems.append(f"{self.annotations.name}: {what}; {done}")

    def _categories(self, listed: list[Any]) -> dict[int, str]:
        names: dict[int, str] = {}
        for place, entry in enumerate(listed):
            id = _whole(entry.get("id")) if isinstance(entry, dict) else None
            if id is None or id in names:
                fault = "has no integer id" if id is None else f"repeats id {id}"
                self._problem(f"category number {place} {fault}")
            else:
                names[id] = str(entry.get("name", id))
        if not names:
            raise ValueError(f"coco: {self.annotations} lists no categories")
        return names

    def _files(self, listed: list[Any]) -> dict[int, tuple[str, tuple[int, int]]]:
        """Return the file name and (H, W) of every image by its id."""
        files: dict[int, tuple[str, tuple[int, int]]] = {}
        for place, entry in enumerate(listed):
            id = _whole(entry.get("id")) if isinstance(entry, dict) else None
            if id is None:
                self._problem(f"image number {place} has no integer id")
                continue
            name = entry.get("file_name")
            if id in files or not isinstance(name, str) or not name:
                self._problem(f"image {id} {'is listed twice' if id in files else 'has no file_name'}")
                self._left_out.add(id)
                continue
            try:
                H, W = _whole(entry.get("height")), _whole(entry.get("width"))
                path = self.images / name
                if not H or not W or min(H, W) < 1:
                    H, W = image_size(path)
                elif not path.is_file():
                    raise FileNotFoundError(f"{path} is missing")
            except OSError as error:
                self._problem(f"image {id}: {error}", "left out with its annotations")
                self._left_out.add(id)
                continue
            files[id] = name, (H, W)
        return files

    def _boxes(self, listed: list[Any]) -> tuple[list[Target], list[list[float]]]:
        """Return the target of every image, and the areas of its boxes."""
        label = {id: k for k, id in enumerate(self.category_ids)}
        place = {id: k for k, id in enumerate(self._ids)}
        rows: list[list[_Row]] = [[] for _ in self._ids]
        for number, entry in enumerate(listed):
            name = f"annotation {entry.get('id') if isinstance(entry, dict) and 'id' in entry else f'number {number}'}"
            try:
                image, category, (x, y, w, h) = _fields(entry)
                if image in self._left_out and image not in place:
                    continue  # reported already
                if image not in place:
                    raise _Fault(f"is of image {image}, which is not listed")
                if category not in label:
                    raise _Fault(f"is of category {category}, which is not listed")
                H, W = self._sizes[place[image]]
                cut = (max(0.0, x), max(0.0, y), min(float(W), x + w), min(float(H), y + h))
                if cut[2] <= cut[0] or cut[3] <= cut[1]:
                    raise _Fault(f"lies outside of image {image}, its box is {[x, y, w, h]}")
                kept = array("f", cut)  # float32, as the boxes of a target
                if kept[2] <= kept[0] or kept[3] <= kept[1]:
                    raise _Fault(f"has a box of {w:g}×{h:g} pixels, without area in float32")
            except _Fault as fault:
                self._problem(f"{name} {fault}")
                continue
            out = max(cut[0] - x, cut[1] - y, x + w - cut[2], y + h - cut[3])
            if out > SLACK:
                self._problem(f"{name} extends beyond image {image} by {out:g} pixels", "cut")
            area = _number(entry.get("area")) or 0.0
            if area <= 0:
                area = (cut[2] - cut[0]) * (cut[3] - cut[1])
            crowd = bool(entry.get("iscrowd")) or bool(entry.get("ignore"))
            rows[place[image]].append(_Row(cut, label[category], crowd, area))
        targets = [
            Target(
                boxes=torch.tensor([row.box for row in part], dtype=torch.float32).view(-1, 4),
                labels=torch.tensor([row.label for row in part], dtype=torch.int64),
                ignore=torch.tensor([row.crowd for row in part], dtype=torch.bool),
                image_id=id,
            )
            for id, part in zip(self._ids, rows, strict=True)
        ]
        return targets, [[row.area for row in part] for part in rows]


class _Row(NamedTuple):
    """An annotation that can be used."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float


class _Fault(Exception):
    """A fault of an annotation."""


def _fields(entry: Any) -> tuple[int, int, tuple[float, float, float, float]]:
    """Return image id, category id and x y w h of an annotation."""
    if not isinstance(entry, dict):
        raise _Fault("is not an object")
    missing = [key for key in ("image_id", "category_id", "bbox") if entry.get(key) is None]
    if missing:
        raise _Fault(f"has no {' and no '.join(missing)}")
    image, category = _whole(entry["image_id"]), _whole(entry["category_id"])
    if image is None or category is None:
        raise _Fault("has an image_id or category_id that is not an integer")
    box = entry["bbox"] if isinstance(entry["bbox"], list) else []
    numbers = [number for number in map(_number, box) if number is not None]
    if len(numbers) != 4 or len(box) != 4:
        raise _Fault(f"has the box {entry['bbox']!s:.60}, which is not four finite numbers")
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        raise _Fault(f"has a box of {w:g}×{h:g} pixels")
    return image, category, (x, y, w, h)


def ground_truth(
    targets: Sequence[Target],
    sizes: Sequence[tuple[int, int]],
    names: Sequence[str],
    classes: Sequence[str],
    category_ids: Sequence[int],
    areas: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Return targets in COCO's format, ready for JSON; `ignore` becomes `iscrowd`.

    Args:
        targets: one per image.
        sizes: (H, W) of every image.
        names: file name of every image.
        classes: name of every label.
        category_ids: COCO's id of every label.
        areas: of every object of every image; None takes the areas of the boxes.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k, (target, (H, W), name) in enumerate(zip(targets, sizes, names, strict=True)):
        images.append({"id": target["image_id"], "file_name": name, "height": H, "width": W})
        rows = zip(target["boxes"].tolist(), target["labels"].tolist(), target["ignore"].tolist(), strict=True)
        for j, ((x1, y1, x2, y2), label, ignore) in enumerate(rows):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCO's own evaluation takes an id of 0 for "no match"
                    "image_id": target["image_id"],
                    "category_id": category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1) if areas is None else areas[k][j],
                    "iscrowd": int(ignore),
                }
            )
    categories = [{"id": id, "name": name} for id, name in zip(category_ids, classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read(path: Path) -> dict[str, Any]:
    """Return an annotation file."""
    if not path.is_file():
        raise FileNotFoundError(f"coco: the annotation file {path} is missing")
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"coco: {path} is incomplete or not JSON ({error}); fetch it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(truth, dict) or not isinstance(truth.get(key), list):
            raise ValueError(f"coco: {path} is not in COCO's format: it has no list of {key}")
    return dict(truth)


def _number(value: Any) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: Any) -> int | None:
    """Return an integer, or None; 3.0 is one."""
    number = _number(value)
    return int(value) if number is not None and number.is_integer() else None
