from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pliant.data import BrokenImage, CocoDetection, Composed

TRUTH: dict[str, Any] = {
    "images": [
        {"id": 40, "file_name": "a.png", "height": 30, "width": 50},
        {"id": 7, "file_name": "sub/b.png", "height": 20, "width": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1, 2, 3.5, 4], "area": 9.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 20], "iscrowd": 1},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    random = np.random.default_rng(0)
    for name, shape in (("a.png", (30, 50, 3)), ("sub/b.png", (20, 20, 3))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def _data(folder: Path, **changed: list[Any]) -> CocoDetection:
    path = folder / "truth.json"
    path.write_text(json.dumps({**TRUTH, **changed}), encoding="utf-8")
    return CocoDetection(folder, path)


def _annotated(folder: Path, *annotations: Any) -> tuple[CocoDetection, list[str]]:
    """Return the data set with these annotations added, and its problems, of which one warning must tell."""
    path = folder / "truth.json"
    path.write_text(json.dumps({**TRUTH, "annotations": [*TRUTH["annotations"], *annotations]}), encoding="utf-8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = CocoDetection(folder, path)
    assert len(caught) == (1 if data.problems else 0)
    return data, data.problems


def test_items(folder: Path) -> None:
    data = _data(folder)
    assert (data.classes, data.category_ids) == (("cat", "dog"), (3, 18))
    assert len(data) == 2 and data.problems == []
    image, target = data[0]
    assert image.shape == (3, 30, 50)
    assert target["image_id"] == 40 and target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    image, target = data[1]
    assert image.shape == (3, 20, 20)
    assert target["boxes"].tolist() == [[1, 2, 4.5, 6], [0, 0, 20, 20]]
    assert target["labels"].tolist() == [1, 0]
    assert target["ignore"].tolist() == [False, True]
    assert (target["boxes"].dtype, target["labels"].dtype, target["ignore"].dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )
    target["boxes"] += 1  # an item belongs to the caller
    assert data[1][1]["boxes"][0, 0] == 1


def test_coco_gives_back_what_is_used(folder: Path) -> None:
    truth = _data(folder).coco()
    assert truth["images"] == TRUTH["images"]
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}]
    assert truth["annotations"] == [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1, 2, 3.5, 4], "area": 9.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 1},
    ]


@pytest.mark.parametrize(
    ("annotation", "sentence"),
    [
        ({"bbox": [1, 1, 0, 5]}, "annotation 9 has a box of 0×5 pixels; left out"),
        ({"bbox": [1, 1, 5, -2]}, "annotation 9 has a box of 5×-2 pixels; left out"),
        ({"bbox": [1, 1, 5]}, "annotation 9 has the box [1, 1, 5], which is not four finite numbers; left out"),
        ({"bbox": [1, 1, 5, "six"]}, "which is not four finite numbers; left out"),
        ({"bbox": [1, 1, float("inf"), 6]}, "which is not four finite numbers; left out"),
        ({"bbox": [float("nan"), 1, 6, 6]}, "which is not four finite numbers; left out"),
        ({"bbox": [1, 1, 10**400, 6]}, "which is not four finite numbers; left out"),
        ({"bbox": {"x": 1}}, "which is not four finite numbers; left out"),
        ({"bbox": None}, "annotation 9 has no bbox; left out"),
        ({"bbox": None, "image_id": None}, "annotation 9 has no image_id and no bbox; left out"),
        ({"category_id": None}, "annotation 9 has no category_id; left out"),
        ({"image_id": 8}, "annotation 9 is of image 8, which is not listed; left out"),
        ({"category_id": 1}, "annotation 9 is of category 1, which is not listed; left out"),
        ({"category_id": "cat"}, "annotation 9 has an image_id or category_id that is not an integer; left out"),
        ({"bbox": [60, 1, 5, 5]}, "annotation 9 lies outside of image 40, its box is [60.0, 1.0, 5.0, 5.0]; left out"),
        ({"bbox": [5, 5, 1e-9, 2]}, "annotation 9 has a box of 1e-09×2 pixels, without area in float32; left out"),
        ({"bbox": [-9, 1, 9, 5]}, "annotation 9 lies outside of image 40"),
        ({"iscrowd": "maybe"}, "annotation 9 has iscrowd 'maybe', which is neither yes nor no; left out"),
        ({"ignore": [0]}, "annotation 9 has ignore [0], which is neither yes nor no; left out"),
        ({"iscrowd": float("nan")}, "annotation 9 has iscrowd nan, which is neither yes nor no; left out"),
    ],
)
def test_broken_annotations_are_left_out(folder: Path, annotation: dict[str, Any], sentence: str) -> None:
    whole = {"id": 9, "image_id": 40, "category_id": 3, "bbox": [1, 1, 5, 5]}
    data, problems = _annotated(folder, {**whole, **annotation}, {**whole, "id": 10})
    assert len(problems) == 1 and problems[0].startswith("truth.json: ") and sentence in problems[0]
    assert len(data[0][1]["boxes"]) == 1 and len(data[1][1]["boxes"]) == 2


def test_annotations_without_id_or_form(folder: Path) -> None:
    _, problems = _annotated(folder, {"image_id": 40, "category_id": 3}, 5)
    assert problems == [
        "truth.json: annotation number 2 has no bbox; left out",
        "truth.json: annotation number 3 is not an object; left out",
    ]


def test_boxes_that_stick_out_are_cut(folder: Path) -> None:
    whole = {"id": 9, "image_id": 40, "category_id": 3, "bbox": [40, 20, 30, 10.5]}
    data, problems = _annotated(folder, whole, {**whole, "id": 10, "bbox": [-0.5, 2, 5, 5]})
    assert problems == ["truth.json: annotation 9 extends beyond image 40 by 20 pixels; cut"]
    assert data[0][1]["boxes"].tolist() == [[40, 20, 50, 30], [0, 2, 4.5, 7]]
    assert [a["area"] for a in data.coco()["annotations"]][:2] == [100, 22.5]


def test_one_warning_counts_the_problems(folder: Path) -> None:
    bad = {"id": 9, "image_id": 40, "category_id": 3, "bbox": [1, 1, 0, 5]}
    with pytest.warns(
        UserWarning, match=r"^coco: truth\.json: annotation 9 has .* left out and 2 more, see \.problems$"
    ):
        _data(folder, annotations=[*TRUTH["annotations"], bad, bad, bad])


def test_broken_pictures_are_left_out_with_their_annotations(folder: Path) -> None:
    images = [
        *TRUTH["images"],
        {"id": 1, "file_name": "gone.png", "height": 3, "width": 3},
        {"id": 40, "file_name": "sub/b.png"},
        {"id": 2},
        {"file_name": "a.png"},
        {"id": 3, "file_name": "text.png"},
        "a.png",
    ]
    (folder / "text.png").write_text("no picture")
    extra = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2]}
    with pytest.warns(UserWarning, match="and 5 more"):
        data = _data(folder, images=images, annotations=[*TRUTH["annotations"], extra])
    assert len(data) == 2 and len(data[1][1]["boxes"]) == 2
    expected = (
        "image 1: .*gone.png is missing; left out with its annotations",
        "image 40 is listed twice; left out",
        "image 2 has no file_name; left out",
        "image number 5 has no integer id; left out",
        "image 3: .*text.png cannot be read: .*; left out with its annotations",
        "image number 7 has no integer id; left out",
    )
    import re

    assert len(data.problems) == 6
    for problem, pattern in zip(data.problems, expected, strict=True):
        assert re.search(pattern, problem)


def test_size_comes_from_the_file_where_it_is_not_given(folder: Path) -> None:
    images = [{"id": 40, "file_name": "a.png"}, {"id": 7, "file_name": "sub/b.png", "height": 0, "width": "x"}]
    data = _data(folder, images=images)
    assert data.coco()["images"] == TRUTH["images"]


def test_categories(folder: Path) -> None:
    with pytest.warns(UserWarning, match="category number 1 repeats id 3; left out and 1 more"):
        data = _data(folder, categories=[{"id": 3, "name": "cat"}, {"id": 3, "name": "x"}, {"name": "y"}, {"id": 18}])
    assert data.classes == ("cat", "18")
    with pytest.raises(ValueError, match="lists no categories"):
        _data(folder, categories=[])


def test_a_picture_that_breaks_later_is_named(folder: Path) -> None:
    data = _data(folder)
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    with pytest.raises(BrokenImage, match=r"a\.png has 9×9 pixels, its annotations are for 50×30"):
        data[0]
    (folder / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png is missing"):
        data[0]


def test_files_that_are_nothing(folder: Path) -> None:
    path = folder / "truth.json"
    with pytest.raises(FileNotFoundError, match=r"the annotation file .*truth\.json is missing"):
        CocoDetection(folder, path)
    for content, sentence in (
        ("{", "incomplete or not JSON"),
        ("[]", "not in COCO's format: it has no list of images"),
        ('{"images": [], "annotations": {}}', "no list of annotations"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=sentence) as error:
            CocoDetection(folder, path)
        assert str(path) in str(error.value)
    for content in (b"\xff\xfe{", b"\xff\xfe{\x00[", b"\x81{}", b"[" * 100_000, b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"truth\.json is incomplete or not JSON"):
            CocoDetection(folder, path)
    path.write_text(json.dumps(TRUTH))
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere is missing"):
        CocoDetection(folder / "nowhere", path)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image that is in .*; truth\.json: image 40: .* is missing"):
        CocoDetection(folder / "empty", path)
    with pytest.raises(IndexError, match="2 images, got index 2"):
        _data(folder)[2]


FLAGS: list[tuple[Any, bool]] = [
    (0, False), (1, True), (0.0, False), (1.0, True), (False, False), (True, True), (None, False),
    ("0", False), ("1", True), ("0.0", False), ("false", False), ("False", False), ("true", True), ("", False),
    ("no", False), ("yes", True), ("null", False),
]  # fmt: skip


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(("given", "crowd"), FLAGS)
def test_flags_however_they_are_spelled(folder: Path, key: str, given: Any, crowd: bool) -> None:
    box = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}
    data = _data(folder, annotations=[box, {**box, key: given}])
    assert data[1][1]["ignore"].tolist() == [False, crowd]
    assert data.objects == 2 - crowd and data.problems == []


def test_one_flag_of_two_is_enough(folder: Path) -> None:
    box = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}
    flags = [{"iscrowd": 0, "ignore": 1}, {"iscrowd": 1, "ignore": 0}, {"iscrowd": 0, "ignore": 0}, {}]
    data = _data(folder, annotations=[{**box, **pair} for pair in flags])
    assert data[1][1]["ignore"].tolist() == [True, True, False, False]


def test_numbers_that_are_strings(folder: Path) -> None:
    def spelled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: v if key in ("name", "file_name") else spelled(v) for key, v in value.items()}
        return [spelled(v) for v in value] if isinstance(value, list) else str(value)

    plain = _data(folder)
    for truth in (spelled(TRUTH), json.loads(json.dumps(TRUTH), parse_int=float)):
        data = _data(folder, **truth)
        assert data.problems == [] and data.coco() == plain.coco()
        assert data.category_ids == (3, 18) and data[1][1]["image_id"] == 7


def test_an_area_that_is_no_number(folder: Path) -> None:
    large = {"id": 9, "image_id": 40, "category_id": 3, "bbox": [1, 1, 5, 5], "area": "large"}
    data, problems = _annotated(folder, large, {**large, "id": 10, "area": None}, {**large, "id": 11, "area": "24.5"})
    assert problems == [
        "truth.json: annotation 9 has the area 'large', which is not a number; that of the box is taken"
    ]
    assert [a["area"] for a in data.coco()["annotations"]][:3] == [25, 25, 24.5]


def test_ids_that_are_no_numbers_are_named(folder: Path) -> None:
    named = [{"id": "cat", "name": "cat"}, {"id": "dog", "name": "dog"}]
    sentence = "lists no categories that can be used; truth.json: category number 0 has the id 'cat', which is not an"
    with pytest.raises(ValueError, match=sentence):
        _data(folder, categories=named)
    images = [{"id": "a", "file_name": "a.png"}]
    with pytest.raises(ValueError, match=r"truth\.json: image number 0 has the id 'a', which is not an integer"):
        _data(folder, images=images)


def test_names_of_categories(folder: Path) -> None:
    names = [{"id": 3, "name": None}, {"id": 18, "name": ""}, {"id": 4, "name": "cat"}, {"id": 5, "name": "cat"}]
    with pytest.warns(UserWarning, match=r"category 5 has the name 'cat' of another one; called 'cat \(5\)'"):
        data = _data(folder, categories=names)
    assert data.classes == ("3", "cat", "cat (5)", "18")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_every_encoding_is_read(folder: Path, encoding: str) -> None:
    path = folder / "truth.json"
    categories = [{"id": 3, "name": "Bär"}, {"id": 18, "name": "naïve"}]
    content = json.dumps({**TRUTH, "categories": categories}, ensure_ascii=False)
    path.write_bytes(content.encode(encoding))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = CocoDetection(folder, path)
    assert data.classes == ("Bär", "naïve") and len(data[1][1]["boxes"]) == 2
    assert data.problems == (["truth.json: is not in UTF-8; read as Windows-1252"] if encoding == "cp1252" else [])


def test_file_names_of_other_systems(folder: Path) -> None:
    images = [
        {"id": 40, "file_name": f"{folder.name}\\a.png"},
        {"id": 7, "file_name": "sub\\b.png"},
        {"id": 8, "file_name": f"{folder.name}/sub/b.png"},
        {"id": 9, "file_name": "Ba\u0308r.png"},
    ]
    Image.new("RGB", (4, 4)).save(folder / "B\u00e4r.png")
    data = _data(folder, images=images)
    assert data.problems == [] and [data[i][0].shape[1] for i in range(4)] == [30, 20, 20, 4]


def test_nothing_to_find(folder: Path) -> None:
    crowd = {"id": 9, "image_id": 40, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": "1"}
    with pytest.warns(UserWarning, match="annotation 9 has the box .* and 1 more"):
        data = _data(folder, annotations=[crowd, {**crowd, "bbox": []}])
    assert data.objects == 0
    assert data.problems[-1] == (
        "truth.json: has no object to find: it lists 2 annotations, of which 1 can be used and are crowds; "
        "every image is background"
    )
    assert _data(folder).objects == 1


def test_composed_scenes_written_are_read_back(tmp_path: Path) -> None:
    scenes = Composed(0, 5, classes=("bag", "sneaker"))
    path = scenes.write(tmp_path)
    data = CocoDetection(tmp_path / "images", path)
    assert data.problems == [] and data.classes == ("sneaker", "bag")  # by id
    for index in range(5):
        image, target = scenes[index]
        read, found = data[index]
        assert torch.equal(read, image) and torch.equal(found["boxes"], target["boxes"])
        assert torch.equal(found["labels"], 1 - target["labels"]) and found["image_id"] == index
    mine, theirs = scenes.coco(), data.coco()
    assert mine["images"] == theirs["images"] and mine["annotations"] == theirs["annotations"]
