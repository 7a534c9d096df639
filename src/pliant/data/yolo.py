"""Labels of YOLO: a text file per image, one object per line, read as COCO's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pliant._files import text
from pliant.data.images import image_size
from pliant.data.values import number, whole

LISTS = ("classes.txt", "obj.names", "names.txt", "labels.txt")  # files of class names beside the labels


def truth(images: Path, labels: Path, paths: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """Return YOLO's labels as COCO's format says them, and a sentence for every fault.

    A line is ``class x y w h``: the centre and the sides of a box as shares of the image's. A line of more numbers is a
    polygon, ``class x1 y1 x2 y2 x3 y3 …``, which becomes the box around it; a sixth number alone is a score, which is
    dropped. The names of the classes are those of data.yaml or classes.txt in `labels`, `images` or up to two folders
    above; without any they are their numbers.

    Args:
        images: folder of the images.
        labels: folder of the text files, in the same folders below it as the images.
        paths: the images.

    Raises:
        ValueError: no image has a label file.
    """
    problems: list[str] = []
    found: list[tuple[int, int, list[float]]] = []
    listed, with_labels = [], 0
    for id, path in enumerate(paths, 1):
        try:
            H, W = image_size(path)
        except OSError as error:
            problems.append(f"{error}; left out with its labels")
            continue
        listed.append({"id": id, "file_name": path.relative_to(images).as_posix(), "height": H, "width": W})
        file = labels / path.relative_to(images).with_suffix(".txt")
        if not file.is_file():
            continue
        with_labels += 1
        for place, line in enumerate(text(file)[0].splitlines(), 1):
            if not line.strip():
                continue
            row = _box(line.split(), W, H)
            if isinstance(row, str):
                problems.append(f"{file.name}: line {place} {row}; left out")
            else:
                found.append((id, *row))
    if not with_labels:
        raise ValueError(f"yolo: none of the {len(paths)} images of {images} has a text file in {labels}")
    names = _names(images, labels)
    most = max([label for _, label, _ in found], default=-1)
    if not names or most >= len(names):
        if names:
            problems.append(
                f"labels of class {most} exceed the {len(names)} names that are listed; called by their numbers"
            )
        names = [*names, *map(str, range(len(names), most + 1))]
    annotations = [
        {"id": place, "image_id": image, "category_id": label + 1, "bbox": box}
        for place, (image, label, box) in enumerate(found, 1)
    ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    return {"images": listed, "annotations": annotations, "categories": categories}, problems


def _box(words: Sequence[str], W: int, H: int) -> tuple[int, list[float]] | str:
    """Return class and box x y w h, in pixels, of a line; or what is wrong with it."""
    label, numbers = whole(words[0]), [number(word) for word in words[1:]]
    if label is None or label < 0:
        return f"begins with {words[0]!r:.40}, which is not the number of a class"
    known = [value for value in numbers if value is not None]
    if len(known) < len(numbers) or len(numbers) < 4 or (len(numbers) > 5 and len(numbers) % 2):
        return "is neither a box, four numbers, nor a polygon, pairs of numbers"
    if max(map(abs, known[:4])) > 2:
        return "is in pixels; YOLO's numbers are shares of the image, from 0 to 1"
    if len(known) < 6:
        x, y, w, h = known[:4]
        return label, [(x - w / 2) * W, (y - h / 2) * H, w * W, h * H]
    across, down = known[::2], known[1::2]
    left, top = min(across) * W, min(down) * H
    return label, [left, top, max(across) * W - left, max(down) * H - top]


def _names(images: Path, labels: Path) -> list[str]:
    """Return the names of the classes from the first file that lists them; none is an empty list."""
    for folder in dict.fromkeys((labels, images, labels.parent, images.parent, images.parent.parent)):
        for file in (folder / name for name in LISTS):
            if file.is_file():
                return [line.strip() for line in text(file)[0].splitlines() if line.strip()]
        for file in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
            import yaml

            listed = yaml.safe_load(text(file)[0])
            names = listed.get("names") if isinstance(listed, dict) else None
            if isinstance(names, dict):
                return [str(names.get(label, label)) for label in range(max(map(int, names), default=-1) + 1)]
            if isinstance(names, list):
                return [str(name) for name in names]
    return []
