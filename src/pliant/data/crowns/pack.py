"""Make the photographs and ``boxes.csv`` from DeepForest's wheel: ``python -m pliant.data.crowns.pack WHEEL``."""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from pliant.data.crowns import FOLDER

# Our name: the name in the wheel, where each is a PNG file and an XML file in Pascal VOC's form.
PICTURES = {"osbs": "OSBS_029", "yell": "2019_YELL_2_541000_4977000_image_crop"}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
QUALITY = 92


def pack(wheel: Path, folder: Path) -> dict[str, int]:
    """Write the photographs and boxes of `wheel` into `folder`; return the number of boxes per photograph."""
    rows: list[tuple[str, ...]] = []
    with zipfile.ZipFile(wheel) as files:
        for name, theirs in PICTURES.items():
            with Image.open(io.BytesIO(files.read(f"deepforest/data/{theirs}.png"))) as picture:
                picture.convert("RGB").save(folder / f"{name}.jpg", quality=QUALITY, optimize=True)
            for box in ElementTree.fromstring(files.read(f"deepforest/data/{theirs}.xml")).iter("bndbox"):
                rows.append((name, *(str(box.findtext(corner)) for corner in CORNERS)))
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("picture", "x1", "y1", "x2", "y2"), *rows])
    return {name: sum(row[0] == name for row in rows) for name in PICTURES}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pliant.data.crowns.pack WHEEL, the wheel of deepforest 2.1.0")
    for name, count in pack(Path(sys.argv[1]), FOLDER).items():
        print(f"{FOLDER / name}.jpg: {(FOLDER / name).with_suffix('.jpg').stat().st_size} bytes, {count} boxes")
