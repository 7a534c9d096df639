"""Tree crowns: two aerial photographs with hand-drawn boxes, cut into tiles."""

from __future__ import annotations

import csv
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pliant.data.coco import Target, ground_truth
from pliant.data.images import read_image
from pliant.data.transforms import cut_out

FOLDER = Path(__file__).parent
PICTURES = ("osbs", "yell")
Window = tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels


class Region(NamedTuple):
    """A part of a photograph: the photograph's name, the split the part belongs to, and its window."""

    picture: str
    split: str
    window: Window


# About two thirds of the pixels of both places are for training; no training tile shows the rest.
REGIONS = (
    Region("osbs", "train", (0, 0, 400, 200)),
    Region("osbs", "test", (0, 200, 400, 400)),
    Region("yell", "train", (0, 0, 849, 1035)),
    Region("yell", "test", (849, 0, 1249, 1035)),
)


class Crowns(Dataset[tuple[Tensor, Target]]):
    """Tiles of aerial photographs of two forests with boxes around tree crowns; one class.

    Training and test tiles are cut from different regions and share no pixel. The tiles of a region overlap by
    `overlap` pixels, or slightly more so that the last tile ends at the region's border. Boxes are clipped to their
    tile; a crown that keeps less than `visible` of its area is marked ignore. In the test split every crown counts
    once, in the tile that shows most of it, and is marked ignore in the others.

    Args:
        split: "train" or "test".
        tile: side of a tile in pixels, 64 … 1035; narrower regions give narrower tiles.
        overlap: pixels, 0 … tile − 1.
        visible: fraction of a crown's area, from 0 to 1.

    Attributes:
        area_ranges: "small", "medium" and "large" in square pixels, with about a third of the crowns each. COCO's
            "large" would be empty.

    Raises:
        ValueError: an argument is out of its range.

    >>> tiles = Crowns("test")
    >>> image, target = tiles[0]
    >>> image.shape, tiles.classes
    (torch.Size([3, 200, 200]), ('crown',))
    """

    classes: tuple[str, ...] = ("crown",)
    category_ids: tuple[int, ...] = (1,)
    area_ranges = {"small": (0.0, 32.0**2), "medium": (32.0**2, 42.0**2), "large": (42.0**2, 1e10)}  # noqa: RUF012

    def __init__(self, split: str, tile: int = 200, overlap: int = 0, visible: float = 0.5) -> None:
        if split not in ("train", "test"):
            raise ValueError(f'Crowns: split must be "train" or "test", got {split!r}')
        if not 64 <= tile <= 1035 or not 0 <= overlap < tile or not 0 <= visible <= 1:
            raise ValueError(
                "Crowns: tile must be from 64 to 1035, overlap from 0 to tile − 1 and visible from 0 to 1, "
                f"got {tile}, {overlap} and {visible}"
            )
        self._tiles: list[tuple[str, Window]] = []
        self._targets: list[Target] = []
        for picture, boxes in _boxes().items():
            regions = [region.window for region in REGIONS if (region.picture, region.split) == (picture, split)]
            windows = [window for region in regions for window in _windows(region, tile, overlap)]
            most = _most(boxes, windows)
            for k, window in enumerate(windows):
                target = Target(
                    boxes=boxes,
                    labels=torch.zeros(len(boxes), dtype=torch.int64),
                    ignore=(most != k) & (split == "test"),
                    image_id=len(self._tiles),
                )
                self._tiles.append((picture, window))
                self._targets.append(cut_out(target, window, visible))

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return tile `index`, uint8 (3, h, w), and its target."""
        if not 0 <= index < len(self):
            raise IndexError(f"Crowns: there are {len(self)} tiles, got index {index}")
        picture, (x1, y1, x2, y2) = self._tiles[index]
        image = _picture(picture)[:, y1:y2, x1:x2].contiguous()
        return image, {key: v.clone() if isinstance(v, Tensor) else v for key, v in self._targets[index].items()}

    def coco(self) -> dict[str, Any]:
        """Return the ground truth in COCO's form; image ids are indices of tiles."""
        windows = [window for _, window in self._tiles]
        names = [f"{picture}_{x1}_{y1}.png" for picture, (x1, y1, _, _) in self._tiles]
        sizes = [(y2 - y1, x2 - x1) for x1, y1, x2, y2 in windows]
        return ground_truth(self._targets, sizes, names, self.classes, self.category_ids)


def _windows(region: Window, tile: int, overlap: int) -> list[Window]:
    """Return the windows of the tiles that cover a region, row by row."""
    x1, y1, x2, y2 = region
    w, h = min(tile, x2 - x1), min(tile, y2 - y1)
    rows, columns = _starts(y1, y2, h, overlap), _starts(x1, x2, w, overlap)
    return [(left, top, left + w, top + h) for top in rows for left in columns]


def _starts(first: int, last: int, side: int, overlap: int) -> list[int]:
    """Return evenly spaced starts of tiles of length `side`: the first at `first`, the last tile ending at `last`."""
    free = last - first - side
    count = math.ceil(free / (side - min(overlap, side - 1))) + 1
    return [first + round(k * free / max(1, count - 1)) for k in range(count)]


def _most(boxes: Tensor, windows: list[Window]) -> Tensor:
    """Return the index (n,) of the window that shows most of each box, the first among equals."""
    corners = torch.tensor(windows, dtype=torch.float32)
    sides = torch.minimum(boxes[:, None, 2:], corners[:, 2:]) - torch.maximum(boxes[:, None, :2], corners[:, :2])
    return sides.clamp(min=0).prod(2).argmax(1)


@functools.cache
def _boxes() -> dict[str, Tensor]:
    """Return the boxes (n, 4) of every photograph."""
    path = FOLDER / "boxes.csv"
    if not path.is_file():
        raise FileNotFoundError(f"crowns: {path} is missing; install pliant again")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["picture"], [float(row[c]) for c in ("x1", "y1", "x2", "y2")]) for row in csv.DictReader(file)]
    return {name: torch.tensor([box for at, box in rows if at == name]) for name in PICTURES}


@functools.cache
def _picture(name: str) -> Tensor:
    return read_image(FOLDER / f"{name}.jpg")
