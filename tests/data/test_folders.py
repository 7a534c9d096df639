"""The same boxes come out of COCO's, YOLO's and Pascal VOC's files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pliant.data import Composed, folders, held_out
from pliant.data.coco import CocoDetection

CLASSES = ("trouser", "sneaker")


@pytest.fixture
def scenes(tmp_path: Path) -> Iterator[Path]:
    """Return a folder of images with one file in COCO's format; its warnings are the tests' business."""
    Composed(seed=3, count=4, size=64, classes=CLASSES).write(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="coco: ")
        yield tmp_path


def as_yolo(folder: Path, labels: Path) -> None:
    truth = json.loads((folder / "annotations.json").read_text())
    ids = [category["id"] for category in truth["categories"]]
    labels.mkdir(parents=True, exist_ok=True)
    for image in truth["images"]:
        rows = []
        for entry in truth["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, w, h = (value / 64 for value in entry["bbox"])
                rows.append(f"{ids.index(entry['category_id'])} {x + w / 2} {y + h / 2} {w} {h}\n")
        (labels / Path(image["file_name"]).with_suffix(".txt")).write_text("".join(rows))
    (folder / "annotations.json").unlink()


def as_voc(folder: Path, annotations: Path) -> None:
    truth = json.loads((folder / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    annotations.mkdir(parents=True, exist_ok=True)
    for image in truth["images"]:
        objects = ""
        for entry in truth["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, w, h = entry["bbox"]
                box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                name = names[entry["category_id"]]
                objects += f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        stored = f"<filename>C:\\photos\\{image['file_name']}</filename>"
        path = annotations / Path(image["file_name"]).with_suffix(".xml")
        path.write_text(f"<annotation>{stored}{objects}</annotation>")
    (folder / "annotations.json").unlink()


def content(data: CocoDetection) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    """Return every image with its boxes and the names of their classes."""
    items = [data[index] for index in range(len(data))]
    return [(image, t["boxes"], [data.classes[label] for label in t["labels"]]) for image, t in items]


def same(found: CocoDetection, expected: list[tuple[torch.Tensor, torch.Tensor, list[str]]]) -> None:
    assert len(found) == len(expected) == 4
    for (image, boxes, names), (other, wanted, called) in zip(content(found), expected, strict=True):
        assert torch.equal(image, other) and names == called
        torch.testing.assert_close(boxes, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("place", ["labels", "images"])
def test_yolo(place: str, scenes: Path) -> None:
    expected = content(folders.read(scenes / "images"))
    as_yolo(scenes, scenes / place)
    (scenes / "data.yaml").write_text("train: images\nnames: {0: trouser, 1: sneaker}\n")
    found = folders.read(scenes)
    same(found, expected)
    assert found.classes == CLASSES and found.problems == []
    (scenes / "data.yaml").unlink()
    (scenes / "classes.txt").write_text("trouser\r\nsneaker\r\n", encoding="utf-8-sig")
    same(folders.read(scenes / "images", scenes / place, "yolo"), expected)
    (scenes / "classes.txt").unlink()
    assert folders.read(scenes).classes == ("0", "1")


def test_yolo_by_split(scenes: Path) -> None:
    expected = content(folders.read(scenes / "images"))
    as_yolo(scenes, scenes / "labels" / "train")
    (scenes / "images").rename(scenes / "train")
    (scenes / "images").mkdir()
    (scenes / "train").rename(scenes / "images" / "train")
    (scenes / "data.yaml").write_text("names: [trouser, sneaker]")
    same(folders.read(scenes / "images" / "train"), expected)
    same(folders.read(scenes), expected)


def test_polygons_scores_and_faults_of_yolo(scenes: Path) -> None:
    labels = scenes / "labels"
    as_yolo(scenes, labels)
    first, second, *_ = sorted(labels.iterdir())
    first.write_text("0 .25 .25 .75 .25 .5 .5\n1 .5 .5 .25 .25 .9\n")
    second.write_text("dog .1 .1 .1 .1\n0 .1 .1\n0 10 20 30 40\n\n7 .5 .5 .5 .5\n")
    (scenes / "classes.txt").write_text("trouser\nsneaker\n")
    found = folders.read(scenes)
    assert found[0][1]["boxes"].tolist() == [[16, 16, 48, 32], [24, 24, 40, 40]]
    assert [found.classes[label] for label in found[1][1]["labels"]] == ["7"]
    said = "\n".join(found.problems)
    for fault in (
        "line 1 begins with 'dog'",
        "line 2 is neither a box",
        "line 3 is in pixels",
        "class 7 exceed the 2 names",
    ):
        assert fault in said
    assert len(found.problems) == 4


def test_voc(scenes: Path) -> None:
    expected = content(folders.read(scenes / "images"))
    as_voc(scenes, scenes / "Annotations")
    found = folders.read(scenes / "images")
    same(found, expected)
    assert found.classes == ("sneaker", "trouser")
    (scenes / "images").rename(scenes / "JPEGImages")
    same(folders.read(scenes), expected)


def test_difficult_objects_and_faults_of_voc(scenes: Path) -> None:
    as_voc(scenes, scenes / "Annotations")
    first, second, third, _ = sorted((scenes / "Annotations").iterdir())
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>20</ymax></bndbox>"
    first.write_text(f"<a><object><name>dog</name><difficult>1</difficult>{box}</object></a>")
    second.write_text(f"<a><object>{box}</object><object><name>dog</name></object></a>")
    third.write_text("<a><object>")
    found = folders.read(scenes)
    assert found[0][1]["boxes"].tolist() == [[0, 0, 10, 20]] and found[0][1]["ignore"].tolist() == [True]
    said = "\n".join(found.problems)
    for fault in ("object 1 has no name", "object 2 has no bndbox", "is not XML"):
        assert fault in said


def test_what_cannot_be_told_apart_is_asked(scenes: Path) -> None:
    truth = (scenes / "annotations.json").read_bytes()
    as_yolo(scenes, scenes / "labels")
    (scenes / "annotations.json").write_bytes(truth)
    with pytest.raises(ValueError, match=r"in several formats: .*labels \(yolo\) and .*json \(coco\); choose one with"):
        folders.read(scenes)
    assert folders.read(scenes, format="coco").classes == CLASSES
    with pytest.raises(ValueError, match="no annotations in the format voc"):
        folders.read(scenes, format="voc")
    (scenes / "more.json").write_bytes(truth)
    with pytest.raises(ValueError, match=r"several JSON files \(annotations.json, more.json\)"):
        folders.read(scenes)
    with pytest.raises(FileNotFoundError, match="name the one with your images"):
        folders.read(scenes / "nowhere")


def test_a_share_is_held_out() -> None:
    whole = Composed(seed=0, count=10, size=64)
    train, test = held_out(whole, 0.3, seed=1)
    assert (len(train), len(test)) == (7, 3)
    assert sorted([*train.indices, *test.indices]) == list(range(10))
    assert held_out(whole, 0.3, seed=1)[1].indices == test.indices != held_out(whole, 0.3, seed=2)[1].indices
    for part in (train, test):
        truth = part.coco()
        assert [image["id"] for image in truth["images"]] == [part[i][1]["image_id"] for i in range(len(part))]
        assert len(truth["annotations"]) == part.objects == sum(len(part[i][1]["labels"]) for i in range(len(part)))
    assert [len(part) for part in held_out(Composed(0, 2, size=64), 0.01, seed=0)] == [1, 1]
    with pytest.raises(ValueError, match="one image cannot be divided"):
        held_out(Composed(0, 1, size=64), 0.2, seed=0)
