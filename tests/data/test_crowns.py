from __future__ import annotations

import io
import re
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pliant.data import Crowns, crowns, read_image
from pliant.data.crowns.pack import PICTURES, pack


def test_boxes_and_pictures_are_all_there() -> None:
    boxes = crowns._boxes()
    assert {name: len(b) for name, b in boxes.items()} == {"osbs": 61, "yell": 279}
    for name, (H, W) in {"osbs": (400, 400), "yell": (1035, 1249)}.items():
        assert crowns._picture(name).shape == (3, H, W)
        assert (boxes[name][:, 2:] > boxes[name][:, :2]).all() and boxes[name].min() >= 0
        assert (boxes[name].amax(0)[2:] <= torch.tensor([W, H])).all()


def test_data_are_small_and_have_their_notice() -> None:
    files = [path for path in crowns.FOLDER.iterdir() if path.suffix in (".jpg", ".csv")]
    assert len(files) == 3 and sum(path.stat().st_size for path in files) < 650 * 1024
    assert "Copyright (c) 2019, Ben Weinstein" in (crowns.FOLDER / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(("tile", "overlap"), [(200, 0), (200, 60), (128, 0), (333, 100), (1035, 0), (64, 40)])
def test_tiles_cover_their_regions_and_nothing_else(tile: int, overlap: int) -> None:
    seen = {
        name: {split: torch.zeros(1035, 1249, dtype=torch.bool) for split in ("train", "test")} for name in PICTURES
    }
    for split in ("train", "test"):
        for picture, (x1, y1, x2, y2) in Crowns(split, tile, overlap)._tiles:
            assert (x2 - x1, y2 - y1) <= (tile, tile)
            seen[picture][split][y1:y2, x1:x2] = True
    for name, (H, W) in {"osbs": (400, 400), "yell": (1035, 1249)}.items():
        assert not (seen[name]["train"] & seen[name]["test"]).any()
        whole = seen[name]["train"] | seen[name]["test"]
        assert whole[:H, :W].all() and whole.sum() == H * W


def test_overlap_is_kept() -> None:
    assert crowns._starts(0, 849, 200, 0) == [0, 162, 324, 487, 649]
    assert crowns._starts(849, 1249, 200, 0) == [849, 1049]
    assert crowns._starts(0, 400, 200, 100) == [0, 100, 200]
    assert crowns._starts(0, 200, 200, 100) == [0]
    starts = crowns._starts(0, 1035, 200, 60)
    assert starts[-1] == 835 and all(b - a <= 140 for a, b in pairwise(starts))


def test_items_are_parts_of_the_photographs() -> None:
    tiles = Crowns("test", 180, 20)
    for index in (0, len(tiles) - 1):
        image, target = tiles[index]
        picture, (x1, y1, x2, y2) = tiles._tiles[index]
        assert torch.equal(image, read_image(crowns.FOLDER / f"{picture}.jpg")[:, y1:y2, x1:x2])
        assert target["image_id"] == index
        moved = target["boxes"] + torch.tensor([x1, y1, x1, y1])
        whole = crowns._boxes()[picture]
        for box in moved:
            # Every box is one of the photograph's boxes, clipped to the tile.
            cut = torch.cat(
                (whole[:, :2].maximum(torch.tensor([x1, y1])), whole[:, 2:].minimum(torch.tensor([x2, y2]))), 1
            )
            assert (cut == box).all(1).any()


def test_every_crown_counts_once_in_the_test() -> None:
    for overlap in (0, 100):
        tiles = Crowns("test", 200, overlap)
        # Expected are those of the 340 crowns with half of their area in a test region, counted on the photographs.
        expected = 0
        for region in crowns.REGIONS:
            if region.split == "test":
                x1, y1, x2, y2 = region.window
                for a, b, c, d in crowns._boxes()[region.picture].tolist():
                    inside = max(0, min(c, x2) - max(a, x1)) * max(0, min(d, y2) - max(b, y1))
                    expected += inside >= 0.5 * (c - a) * (d - b)
        counted = sum(int((~tiles[index][1]["ignore"]).sum()) for index in range(len(tiles)))
        # A crown on the corner of four tiles may show less than half in each of them.
        assert expected - 3 <= counted <= expected


def test_cut_crowns_are_ignored_when_little_is_left() -> None:
    for visible in (0.0, 0.5, 1.0):
        tiles = Crowns("train", 200, 0, visible)
        for (picture, (x1, y1, _, _)), target in zip(tiles._tiles, tiles._targets, strict=True):
            boxes, whole = target["boxes"], crowns._boxes()[picture]
            for box, ignore in zip(boxes, target["ignore"].tolist(), strict=True):
                a, b, c, d = (box + torch.tensor([x1, y1, x1, y1])).tolist()
                # The crowns that this box may be a part of: those that contain it.
                of = [w for w in whole.tolist() if w[0] <= a and w[1] <= b and w[2] >= c and w[3] >= d]
                shares = [(c - a) * (d - b) / ((w[2] - w[0]) * (w[3] - w[1])) for w in of]
                assert any((share < visible) == ignore for share in shares)


def test_ground_truth() -> None:
    tiles = Crowns("test")
    truth = tiles.coco()
    assert truth["categories"] == [{"id": 1, "name": "crown"}]
    assert [i["id"] for i in truth["images"]] == list(range(len(tiles)))
    assert len({i["file_name"] for i in truth["images"]}) == len(tiles)
    for entry in truth["images"]:
        assert tiles[entry["id"]][0].shape == (3, entry["height"], entry["width"])
    assert len(truth["annotations"]) == sum(len(tiles[index][1]["boxes"]) for index in range(len(tiles)))
    areas = np.array([a["area"] for a in truth["annotations"] if not a["iscrowd"]])
    shares = [((areas >= low) & (areas < high)).mean() for low, high in tiles.area_ranges.values()]
    assert all(0.2 < share < 0.5 for share in shares)


def test_the_page_counts_right() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"there are (\d+) tiles with (\d+) boxes\s+that count, and (\d+) with (\d+)", page)
    counted = []
    for split in ("train", "test"):
        tiles = Crowns(split)
        counted += [len(tiles), sum(int((~tiles[index][1]["ignore"]).sum()) for index in range(len(tiles)))]
    assert [int(number) for number in said] == counted


def test_pack(tmp_path: Path) -> None:
    """A wheel like DeepForest's is packed: images become JPEG, boxes stay as they are."""
    wheel = tmp_path / "deepforest.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        for k, theirs in enumerate(PICTURES.values()):
            png = io.BytesIO()
            Image.new("RGB", (40, 30), (10 * k, 200, 30)).save(png, "PNG")
            files.writestr(f"deepforest/data/{theirs}.png", png.getvalue())
            box = "<object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"
            files.writestr(f"deepforest/data/{theirs}.xml", f"<annotation>{box * (k + 1)}</annotation>")
    assert pack(wheel, tmp_path) == {"osbs": 1, "yell": 2}
    assert (tmp_path / "boxes.csv").read_text() == "picture,x1,y1,x2,y2\nosbs,1,2,9,8\nyell,1,2,9,8\nyell,1,2,9,8\n"
    assert read_image(tmp_path / "yell.jpg").shape == (3, 30, 40)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"split": "val"}, 'split must be "train" or "test"'),
        ({"tile": 32}, "tile must be from 64 to 1035"),
        ({"overlap": 200}, "overlap from 0 to tile − 1"),
        ({"visible": 1.5}, "visible from 0 to 1"),
    ],
)
def test_errors(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Crowns(**{"split": "train", **arguments})


def test_missing_files_and_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IndexError, match="tiles, got index"):
        Crowns("test")[1000]
    monkeypatch.setattr(crowns, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"boxes\.csv is missing; install pliant again"):
        crowns._boxes.__wrapped__()
