"""Detection data in COCO's format: read from files, and written."""

from __future__ import annotations

import json
import unicodedata
import warnings
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pliant._files import text
from pliant.data.images import image_size, read_image
from pliant.data.values import flag, number, whole

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

    The file may be in UTF-8 or UTF-16, with or without a byte order mark, or in Windows-1252. Numbers and flags may be
    strings, such as "3" or "false". File names may have backslashes, and may begin with the name of the folder.

    Faulty entries of the file are left out, and one warning is given; `problems` has a sentence for each of them, with
    file, id and what was done:

    * an image that is missing, listed twice, or listed without integer id or file name: left out;
    * an annotation without box, image or category, or of an image or category that is not listed: left out;
    * a box that is not four finite numbers, has no area, or lies outside of its image: left out;
    * a flag that is neither yes nor no: left out with its annotation;
    * a box that extends beyond its image: cut (mentioned beyond `SLACK` pixels);
    * an area that is not a number: replaced by that of the box;
    * a category with the name of another one: its id is added to its name;
    * a file in Windows-1252, and one that leaves no box to find, are mentioned.

    Reading an item whose image file is broken raises `BrokenImage`; `batches` continues with the next image.

    Args:
        images: folder to which the file names are relative.
        annotations: JSON file.

    Attributes:
        classes: names of the labels.
        category_ids: their ids in the file.
        objects: number of boxes that are not marked ignore.
        area_ranges: COCO's small, medium and large, in square pixels.
        problems: sentences.

    Raises:
        FileNotFoundError: the folder or the file is missing.
        ValueError: the file is not in COCO's format, or nothing in it can be used.
    """

    area_ranges = AREA_RANGES

    def __init__(self, images: Path, annotations: Path) -> None:
        self.images, self.annotations = Path(images), Path(annotations)
        self.problems: list[str] = []
        truth = self._read()
        if not self.images.is_dir():
            raise FileNotFoundError(f"coco: the folder {self.images} is missing; name the one with the images")
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
        self.objects = sum(int((~target["ignore"]).sum()) for target in self._targets)
        if not self.objects:
            crowds = sum(map(len, self._areas))
            what = f"it lists {len(truth['annotations'])} annotations, of which {crowds} can be used and are crowds"
            self._problem(f"has no object to find: {what}", "every image is background")
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

    def _read(self) -> dict[str, Any]:
        """Return the annotation file."""
        path = self.annotations
        if not path.is_file():
            raise FileNotFoundError(f"coco: the annotation file {path} is missing")
        try:
            content, encoding = text(path)
            truth = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"coco: {path} is incomplete or not JSON ({error}); fetch it again") from error
        for key in ("images", "annotations", "categories"):
            if not isinstance(truth, dict) or not isinstance(truth.get(key), list):
                raise ValueError(f"coco: {path} is not in COCO's format: it has no list of {key}")
        if encoding == "Windows-1252":
            self._problem("is not in UTF-8", "read as Windows-1252")
        return dict(truth)

    def _categories(self, listed: list[Any]) -> dict[int, str]:
        names: dict[int, str] = {}
        for place, entry in enumerate(listed):
            given = entry.get("id") if isinstance(entry, dict) else None
            id = whole(given)
            if id is None or id in names:
                lacks = "has no integer id" if given is None else f"has the id {given!r}, which is not an integer"
                self._problem(f"category number {place} {lacks if id is None else f'repeats id {id}'}")
                continue
            name = str(id if entry.get("name") in (None, "") else entry["name"])
            if name in names.values():
                self._problem(f"category {id} has the name {name!r} of another one", f"called '{name} ({id})'")
                name = f"{name} ({id})"
            names[id] = name
        if not names:
            first = f" that can be used; {self.problems[0]}" if listed else ""
            raise ValueError(f"coco: {self.annotations} lists no categories{first}")
        return names

    def _files(self, listed: list[Any]) -> dict[int, tuple[str, tuple[int, int]]]:
        """Return the file name and (H, W) of every image by its id."""
        files: dict[int, tuple[str, tuple[int, int]]] = {}
        for place, entry in enumerate(listed):
            given = entry.get("id") if isinstance(entry, dict) else None
            id = whole(given)
            if id is None:
                lacks = "has no integer id" if given is None else f"has the id {given!r}, which is not an integer"
                self._problem(f"image number {place} {lacks}")
                continue
            name = entry.get("file_name")
            if id in files or not isinstance(name, str) or not name:
                self._problem(f"image {id} {'is listed twice' if id in files else 'has no file_name'}")
                self._left_out.add(id)
                continue
            try:
                H, W = whole(entry.get("height")), whole(entry.get("width"))
                name = self._found(name)
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

    def _found(self, name: str) -> str:
        """Return the name of an image's file as it is in the folder; if there is none, the name as it is given.

        The given name may be one of Windows, with backslashes; may begin with the name of the folder of images; or may
        compose its accents otherwise than the file system does.
        """
        slashed = name.replace("\\", "/")
        inside = slashed.removeprefix(f"{self.images.resolve().name}/")
        spelled = (unicodedata.normalize(form, way) for form in ("NFC", "NFD") for way in (slashed, inside))
        return next((way for way in (name, slashed, inside, *spelled) if (self.images / way).is_file()), name)

    def _boxes(self, listed: list[Any]) -> tuple[list[Target], list[list[float]]]:
        """Return the target of every image, and the areas of its boxes."""
        label = {id: k for k, id in enumerate(self.category_ids)}
        place = {id: k for k, id in enumerate(self._ids)}
        rows: list[list[_Row]] = [[] for _ in self._ids]
        for position, entry in enumerate(listed):
            named = isinstance(entry, dict) and "id" in entry
            name = f"annotation {entry['id'] if named else f'number {position}'}"
            try:
                image, category, (x, y, w, h), crowd = _fields(entry)
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
            area, given = (cut[2] - cut[0]) * (cut[3] - cut[1]), entry.get("area")
            read = number(given)
            if given is not None and read is None:
                self._problem(f"{name} has the area {given!r:.60}, which is not a number", "that of the box is taken")
            elif read is not None and read > 0:
                area = read
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


def _fields(entry: Any) -> tuple[int, int, tuple[float, float, float, float], bool]:
    """Return image id, category id, x y w h of an annotation, and whether it is a crowd."""
    if not isinstance(entry, dict):
        raise _Fault("is not an object")
    missing = [key for key in ("image_id", "category_id", "bbox") if entry.get(key) is None]
    if missing:
        raise _Fault(f"has no {' and no '.join(missing)}")
    image, category = whole(entry["image_id"]), whole(entry["category_id"])
    if image is None or category is None:
        raise _Fault("has an image_id or category_id that is not an integer")
    box = entry["bbox"] if isinstance(entry["bbox"], list) else []
    numbers = [n for n in map(number, box) if n is not None]
    if len(numbers) != 4 or len(box) != 4:
        raise _Fault(f"has the box {entry['bbox']!s:.60}, which is not four finite numbers")
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        raise _Fault(f"has a box of {w:g}×{h:g} pixels")
    crowd = False
    for key in ("iscrowd", "ignore"):
        set_ = flag(entry.get(key))
        if set_ is None:
            raise _Fault(f"has {key} {entry[key]!r:.60}, which is neither yes nor no")
        crowd = crowd or set_
    return image, category, (x, y, w, h), crowd


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
