"""``pliant predict``: detect objects in images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pliant._files import apart, replacing
from pliant.app import CHECKPOINT, DEVICE, trace
from pliant.data import read_image
from pliant.models import Predictor
from pliant.show import boxes
from pliant.train.distributed import resolve
from pliant.train.evaluation import coco_results

if TYPE_CHECKING:
    from PIL.Image import Image


OUT = Path("runs/predict")
LEGIBLE = 400  # shorter side in pixels that names of objects need; smaller images are enlarged to about that


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``pliant predict`` takes."""
    parser.add_argument("checkpoint", metavar="MODEL", help=CHECKPOINT)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="images, or folders of them")
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help=f"for a PNG per image and detections.json (default: {OUT})"
    )
    parser.add_argument("--threshold", type=float, default=0.5, metavar="SCORE", help="lowest score (default: 0.5)")
    parser.add_argument("--device", default="auto", help=DEVICE)


def run(args: argparse.Namespace) -> int:
    """Write images with boxes and detections.json; return 1 if an image could not be read."""
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be from 0 to 1, such as 0.3; got {args.threshold:g}")
    device, paths = resolve(args.device), _images(args.images)
    names, found_in = _names(paths), args.out / "detections.json"
    apart([*(args.out / name for name in names), found_in], [*paths, Path(args.checkpoint)])
    predictor = Predictor.load(args.checkpoint, device)
    args.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    broken, best = 0, 0.0
    for number, (path, name) in enumerate(zip(paths, names, strict=True), 1):
        try:
            image = read_image(path)
        except OSError as error:
            trace(error)
            print(f"pliant predict: {error}", file=sys.stderr)
            broken += 1
            continue
        (found,) = predictor([image])
        best = max([best, *found["scores"].tolist()])
        kept = {key: value[found["scores"] >= args.threshold] for key, value in found.items()}
        drawn(image, kept, predictor.classes).save(args.out / name)
        results = coco_results(kept, number, predictor.category_ids)
        lines += [{**line, "file_name": str(path)} for line in results]
        print(f"{path}: {said(kept['labels'].tolist(), predictor.classes)}")
    with replacing(found_in) as part:
        part.write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(lines)} objects in {len(paths) - broken} images: {args.out}/")
    if not lines and broken < len(paths):
        print(nothing(best, args.threshold))
    return 1 if broken else 0


def nothing(best: float, threshold: float) -> str:
    """Return why nothing was found, and what to try.

    >>> nothing(0.27, 0.5)
    'Nothing reaches a score of 0.5 (--threshold); the best detection has 0.27. Try --threshold 0.21.'
    >>> nothing(0.0, 0.5)
    'The network finds nothing at all in these images: are they like those that it was trained on?'
    """
    if not best:
        return "The network finds nothing at all in these images: are they like those that it was trained on?"
    lower = f"{max(0.01, int(80 * best) / 100):g}"
    return (
        f"Nothing reaches a score of {threshold:g} (--threshold); the best detection has {best:.2g}. "
        f"Try --threshold {lower}."
    )


def said(labels: Sequence[int], classes: Sequence[str]) -> str:
    """Return the number of detections per class in words.

    >>> said([1, 0, 1], ("cat", "dog")), said([], ("cat", "dog"))
    ('1 cat, 2 dog', 'nothing')
    """
    counts = [(labels.count(c), name) for c, name in enumerate(classes)]
    return ", ".join(f"{n} {name}" for n, name in counts if n) or "nothing"


def drawn(image: Tensor, found: dict[str, Tensor], classes: Sequence[str]) -> Image:
    """Return an image (3, H, W) with boxes, classes and scores drawn on it, the best on top.

    A small image is enlarged by a whole factor, every pixel into a square.
    """
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, round(LEGIBLE / min(picture.size)))
    picture = picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
    labels = found["labels"].tolist()
    names = [f"{classes[label]} {score:.2f}" for label, score in zip(labels, found["scores"].tolist(), strict=True)]
    boxes.draw(picture, (factor * found["boxes"]).tolist(), names, [boxes.colour(label) for label in labels])
    return picture


def _images(given: Sequence[Path]) -> list[Path]:
    """Return the paths of the images; a folder stands for the files in it that Pillow reads, ordered by name.

    What else is in a folder is named. Files of other systems about other files, such as ._a.png and Thumbs.db, are not.
    """
    from PIL import Image

    # Of some formats, such as PDF, Pillow writes files and reads none.
    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths: list[Path] = []
    for path in given:
        inside = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else [path]
        images = [p for p in inside if p.suffix.lower() in kinds and p.is_file()] if path.is_dir() else inside
        others = [p.name + "/" * p.is_dir() for p in inside if p not in images]
        some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        if not images:
            raise ValueError(f"the folder {path} has no images" + (f", only {some}" if others else ""))
        if others:
            print(f"pliant predict: {path}: no images and left out: {some}", file=sys.stderr)
        paths += images
    return paths


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a file name for each image; those that share one are numbered."""
    names: list[str] = []
    for path in paths:
        name, number = f"{path.stem}.png", 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}.png"
        names.append(name)
    return names
