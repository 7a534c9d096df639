"""Two files agree in the names of their categories, whatever their ids and their order."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.data import CocoDetection, Composed, matched

SCENES = Composed(seed=4, count=6, size=64)
Truth = dict[str, Any]


def _renamed(truth: Truth, ids: dict[int, int] | None = None, names: dict[str, str] | None = None) -> Truth:
    """Return the same boxes with other ids or names of the categories."""
    other = copy.deepcopy(truth)
    for category in other["categories"]:
        category["id"] = (ids or {}).get(category["id"], category["id"])
        category["name"] = (names or {}).get(category["name"], category["name"])
    for annotation in other["annotations"]:
        annotation["category_id"] = (ids or {}).get(annotation["category_id"], annotation["category_id"])
    return other


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SCENES.write(tmp_path_factory.mktemp("scenes")).parent


@pytest.fixture(scope="module")
def truth(folder: Path) -> Truth:
    return dict(json.loads((folder / "annotations.json").read_text()))


def _data(folder: Path, tmp_path: Path, truth: Truth) -> CocoDetection:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(truth))
    return CocoDetection(folder / "images", path)


def _matched(data: CocoDetection) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = matched(data, SCENES.classes, SCENES.category_ids, "the training data")
    assert len(caught) == bool(found.problems)
    return found, found.problems


def test_equal_categories_change_nothing(folder: Path, tmp_path: Path, truth: Truth) -> None:
    data = _data(folder, tmp_path, truth)
    assert matched(data, SCENES.classes, SCENES.category_ids) is data


@pytest.mark.parametrize("case", ["subset", "superset", "from zero", "permuted"])
def test_the_same_boxes_have_the_same_labels(folder: Path, tmp_path: Path, truth: Truth, case: str) -> None:
    used = {a["category_id"] for a in truth["annotations"]}
    ids = list(SCENES.category_ids)
    other = {
        "subset": lambda: {**truth, "categories": [c for c in truth["categories"] if c["id"] in used]},
        "superset": lambda: {**truth, "categories": [{"id": 0, "name": "umbrella"}, *truth["categories"]]},
        "from zero": lambda: _renamed(truth, {id: id - 1 for id in ids}),
        "permuted": lambda: _renamed(truth, dict(zip(ids, ids[::-1], strict=True))),
    }[case]()
    assert len(used) < len(ids)
    data = _data(folder, tmp_path, other)
    found, problems = _matched(data)
    for index in range(len(SCENES)):
        assert torch.equal(found[index][1]["labels"], SCENES[index][1]["labels"])
        assert torch.equal(found[index][1]["boxes"], SCENES[index][1]["boxes"])
    assert found.coco()["annotations"] == SCENES.coco()["annotations"]
    assert sorted(found.coco()["categories"], key=lambda c: c["id"]) == sorted(
        SCENES.coco()["categories"], key=lambda c: c["id"]
    )
    sentence = {
        "subset": "categories: the data does not list ",
        "superset": "categories: the training data does not have 'umbrella', of which there is no box; left out",
        "from zero": f"categories: the ids of {SCENES.classes[0]!r} (0 and 1), ",
        "permuted": f"categories: the ids of {SCENES.classes[-1]!r} (1 and 10), ",
    }[case]
    assert len(problems) == 1 and problems[0].startswith(sentence)


def test_a_name_that_is_missing(folder: Path, tmp_path: Path, truth: Truth) -> None:
    names = {c["id"]: c["name"] for c in truth["categories"]}
    name = names[truth["annotations"][0]["category_id"]]
    count = sum(names[a["category_id"]] == name for a in truth["annotations"])
    data = _data(folder, tmp_path, _renamed(truth, names={name: "umbrella"}))
    sentence = rf"the data has boxes of 'umbrella' \({count} boxes\); the training data has the categories '"
    with pytest.raises(ValueError, match=sentence):
        matched(data, SCENES.classes, SCENES.category_ids, "the training data")
