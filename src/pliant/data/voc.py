"""Annotations of Pascal VOC: an XML file per image, read as COCO's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pliant.data.images import image_size
from pliant.data.values import flag, number


def truth(images: Path, annotations: Path, paths: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """Return Pascal VOC's annotations as COCO's format says them, and a sentence for every fault.

    The file of an image has its name, in the same folder below `annotations` as the image below `images`. VOC counts
    pixels from 1 and includes the last one: a box covers xmin − 1 to xmax. Objects that are `difficult` are marked
    ignore. Classes are ordered by name.

    Args:
        images: folder of the images.
        annotations: folder of the XML files.
        paths: the images.

    Raises:
        ValueError: no image has a file.
    """
    problems: list[str] = []
    found: list[tuple[int, str, list[float], bool]] = []
    listed, with_files = [], 0
    for id, path in enumerate(paths, 1):
        try:
            H, W = image_size(path)
        except OSError as error:
            problems.append(f"{error}; left out with its annotations")
            continue
        listed.append({"id": id, "file_name": path.relative_to(images).as_posix(), "height": H, "width": W})
        file = annotations / path.relative_to(images).with_suffix(".xml")
        if not file.is_file():
            continue
        with_files += 1
        try:
            objects = ElementTree.parse(file).getroot().findall("object")
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            problems.append(f"{file.name}: is not XML ({error}); its image is background")
            continue
        for place, entry in enumerate(objects, 1):
            row = _object(entry)
            if isinstance(row, str):
                problems.append(f"{file.name}: object {place} {row}; left out")
            else:
                found.append((id, *row))
    if not with_files:
        raise ValueError(f"voc: none of the {len(paths)} images of {images} has an XML file in {annotations}")
    ids = {name: id for id, name in enumerate(sorted({name for _, name, _, _ in found}), 1)}
    rows = [
        {"id": place, "image_id": image, "category_id": ids[name], "bbox": box, "iscrowd": int(difficult)}
        for place, (image, name, box, difficult) in enumerate(found, 1)
    ]
    categories = [{"id": id, "name": name} for name, id in ids.items()]
    return {"images": listed, "annotations": rows, "categories": categories}, problems


def _object(entry: ElementTree.Element) -> tuple[str, list[float], bool] | str:
    """Return name, box x y w h and whether it is difficult; or what is wrong with it."""
    name = (entry.findtext("name") or "").strip()
    sides = [number(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    known = [side for side in sides if side is not None]
    difficult = flag(entry.findtext("difficult"))
    if not name:
        return "has no name"
    if len(known) < 4:
        return "has no bndbox of four numbers"
    if difficult is None:
        return f"has the flag difficult {entry.findtext('difficult')!r:.40}, which is neither 0 nor 1"
    left, top, right, bottom = known
    return name, [left - 1, top - 1, right - left + 1, bottom - top + 1], difficult
