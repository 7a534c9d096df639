"""Your own images: a folder with annotations, in the format that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pliant.data.coco import CocoDetection

Format = Literal["auto", "coco", "yolo", "voc"]


def read(images: Path, annotations: Path | None, format: Format = "auto") -> CocoDetection:
    """Return the data of a folder.

    Args:
        images: folder of the images.
        annotations: file in COCO's format; None looks for one beside the images.
        format: of the annotations.

    Raises:
        OSError: a file does not exist.
        ValueError: there are no annotations, or they are not in this format.
    """
    if annotations is None:
        annotations = _json(images)
    return CocoDetection(images, annotations)


def _json(images: Path) -> Path:
    """Return the only JSON file in the folder of images, or in the one above."""
    for folder in (images, images.parent):
        found = sorted(folder.glob("*.json"))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:4])
            raise ValueError(f"{folder} has several JSON files ({names}); say which one with --annotations FILE")
    raise ValueError(f"{images} has no annotations; name them with --annotations FILE")
