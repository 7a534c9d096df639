"""Your own images: a folder with annotations in COCO's, YOLO's or Pascal VOC's format, whichever is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pliant.data import voc, yolo
from pliant.data.coco import CocoDetection

Format = Literal["auto", "coco", "yolo", "voc"]
KINDS = {"coco": ".json", "yolo": ".txt", "voc": ".xml"}
# Folders of annotations beside a folder of images.
BESIDE = {"yolo": ("labels",), "voc": ("Annotations", "annotations")}
INSIDE = ("images", "JPEGImages")  # the images of a data set whose own folder is given
NOT_LABELS = (*yolo.LISTS, "readme.txt", "train.txt", "val.txt", "test.txt", "requirements.txt")
READERS = {"yolo": yolo.truth, "voc": voc.truth}


class _Converted(CocoDetection):
    """Data in another format, converted in memory."""

    def __init__(self, images: Path, annotations: Path, format: str) -> None:
        self.format = format
        super().__init__(images, annotations)

    def _read(self) -> dict[str, Any]:
        paths = _images(self.images)
        truth, problems = READERS[self.format](self.images, self.annotations, paths)
        self.problems += problems
        return truth


def read(images: Path, annotations: Path | None = None, format: Format = "auto") -> CocoDetection:
    """Return the data of a folder.

    Args:
        images: folder of the images, or of a data set with a folder `images` or `JPEGImages` in it.
        annotations: a file in COCO's format, or the folder of the files of YOLO or VOC; None looks among the images and
            beside them: a JSON file, the folder `labels` or the folder `Annotations`.
        format: of the annotations; "auto" takes the only one that is there.

    Raises:
        OSError: a file or a folder does not exist.
        ValueError: there are no annotations, or not in this format, or in several.

    >>> import tempfile
    >>> from pliant.data import Composed
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Composed(seed=0, count=2).write(Path(folder))
    ...     len(read(Path(folder)))
    2
    """
    if not images.is_dir():
        raise FileNotFoundError(f"the folder {images} is missing; name the one with your images")
    images = next((images / name for name in INSIDE if (images / name).is_dir()), images)
    there = _found(images, annotations)
    if format != "auto":
        there = {kind: path for kind, path in there.items() if kind == format}
    if len(there) > 1:
        named = " and ".join(f"{path} ({kind})" for kind, path in there.items())
        raise ValueError(f"{images} has annotations in several formats: {named}; choose one with --data.format")
    if not there:
        wanted = "" if format == "auto" else f" in the format {format}"
        place = annotations or f"{images} or beside it"
        raise ValueError(
            f"there are no annotations{wanted} in {place}: name a JSON file of COCO, or a folder of YOLO's txt or "
            "of VOC's xml files, with --annotations"
        )
    kind, path = next(iter(there.items()))
    return CocoDetection(images, path) if kind == "coco" else _Converted(images, path, kind)


def _found(images: Path, annotations: Path | None) -> dict[str, Path]:
    """Return where there are annotations, by format."""
    if annotations is not None and not annotations.is_dir():
        return {"coco": annotations}
    there: dict[str, Path] = {}
    for kind, beside in BESIDE.items():
        # labels/train belongs to images/train.
        places = [images, *(images.parent / name for name in beside)]
        places += [images.parent.parent / name / images.name for name in beside]
        for place in places if annotations is None else [annotations]:
            if kind not in there and place.is_dir() and any(map(_is_label, place.rglob(f"*{KINDS[kind]}"))):
                there[kind] = place
    for place in (images, images.parent, images.parent / "annotations") if annotations is None else (annotations,):
        listed = sorted(place.glob("*.json")) if place.is_dir() and "coco" not in there else []
        if len(listed) > 1:
            names = ", ".join(path.name for path in listed[:4])
            raise ValueError(f"{place} has several JSON files ({names}); say which one with --annotations FILE")
        if listed:
            there["coco"] = listed[0]
    return there


def _is_label(path: Path) -> bool:
    return path.name.lower() not in NOT_LABELS


def _images(folder: Path) -> list[Path]:
    """Return the images in a folder and in those below it, ordered by path."""
    from PIL import Image

    # Of some formats, such as PDF, Pillow writes files and reads none.
    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in kinds and path.name[0] != "."]
    if not paths:
        raise ValueError(f"the folder {folder} has no images")
    return sorted(paths)
