from __future__ import annotations

import importlib.util
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pliant.data import Composed, FashionMNIST, Ranges, composed, draw, photographs, render, warp

SCENES = Composed(seed=0, count=150)


def _same(first: tuple[Tensor, dict], second: tuple[Tensor, dict]) -> bool:
    return torch.equal(first[0], second[0]) and all(
        torch.equal(first[1][name], second[1][name]) for name in ("boxes", "labels", "ignore")
    )


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the photographs by one uniform grey."""

    def replaced(grey: float) -> None:
        even = torch.full((3, 400, 400), grey).to(torch.uint8)
        monkeypatch.setattr(photographs, "load", lambda split: (even,))

    return replaced


def test_item_is_what_the_contract_says() -> None:
    for index in range(20):
        image, target = SCENES[index]
        boxes = target["boxes"]
        assert (image.dtype, image.shape) == (torch.uint8, (3, 128, 128))
        assert image.is_contiguous()
        assert (boxes.dtype, target["labels"].dtype, target["ignore"].dtype) == (torch.float32, torch.int64, torch.bool)
        assert 1 <= len(boxes) == len(target["labels"]) == len(target["ignore"]) <= 4
        assert target["image_id"] == index
        assert boxes.min() >= 0 and boxes.max() <= 128
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert not target["ignore"].any()


def test_a_scene_depends_on_seed_split_and_index_only() -> None:
    other = pickle.loads(pickle.dumps(Composed(seed=0, count=9)))
    expected = [SCENES[index] for index in range(9)]
    torch.manual_seed(1)
    for index in (5, 2, 8):
        assert _same(other[index], expected[index])
    others = [*expected, *(Composed(1, 9)[index] for index in range(9)), *(Composed(0, 9, "test")[i] for i in range(9))]
    assert len({image.numpy().tobytes() for image, _ in others}) == 27


def test_box_is_the_extent_of_what_is_seen(on: Callable[[float], None]) -> None:
    """A pixel on black and on white differs by 255·(1 − alpha), which locates the object independently of its code."""
    alone = Composed(seed=3, count=60, objects=(1, 1))
    pictures = []
    for grey in (0, 255):
        on(grey)
        pictures.append([alone[index] for index in range(60)])
    unlike_half = 0
    for (black, target), (white, _) in zip(*pictures, strict=True):
        through = (white.int() - black.int()).amin(0)
        # Scenes with pixels near one half are left out, because there rounding decides on the box.
        sure, perhaps = through < 127, through < 129
        unlike_half += torch.equal(sure, perhaps)
        for mask in [sure, perhaps] if torch.equal(sure, perhaps) else []:
            y, x = (mask.any(dim).nonzero()[:, 0] for dim in (1, 0))
            assert target["boxes"].tolist() == [[x[0], y[0], x[-1] + 1, y[-1] + 1]]
    assert unlike_half > 20


def test_covered_edges_do_not_count(on: Callable[[float], None]) -> None:
    """Boxes of a crowded scene contain all its object pixels, and each side of a box touches one."""
    on(0)
    black = Composed(seed=4, count=30, objects=(6, 9))
    seen = [black[index] for index in range(30)]
    on(255)
    covered = 0
    for index, (image, target) in enumerate(seen):
        through = (black[index][0].int() - image.int()).amin(0)
        inside = torch.zeros(128, 128, dtype=torch.bool)
        for x1, y1, x2, y2 in target["boxes"].int().tolist():
            inside[y1:y2, x1:x2] = True
            for side in (through[y1, x1:x2], through[y2 - 1, x1:x2], through[y1:y2, x1], through[y1:y2, x2 - 1]):
                assert side.min() < 129
        assert through[~inside].min() >= 126
        covered += len(target["boxes"])
    assert covered > 120


def test_no_object_hides_too_much_of_another() -> None:
    scenes = Composed(0, 1, size=40)
    square = torch.ones(20, 20, dtype=torch.bool)
    owner = torch.zeros(40, 40, dtype=torch.uint8)
    owner[:20, :20] = 1
    placed = [composed._Placed(0, 0, 0, square, 400)]
    # 7 of 20 rows hidden leave 65 %, 9 leave 55 %: corners at rows 13 and 11 of the 21 possible ones.
    assert scenes._place(owner, square, [[13.5 / 21, 0.0]], placed) == (13, 0)
    assert scenes._place(owner, square, [[11.5 / 21, 0.0]], placed) is None
    assert scenes._place(owner, square, [[11.5 / 21, 0.0], [0.999, 0.999]], placed) == (20, 20)
    owner[:3, :20] = 2  # already hidden pixels count too: 17 rows are visible, 10 would be
    placed.append(composed._Placed(0, 0, 0, square[:3], 60))
    assert scenes._place(owner, square, [[13.5 / 21, 0.0]], placed) is None
    assert scenes._place(owner, torch.ones(41, 5, dtype=torch.bool), [[0.0, 0.0]], []) is None
    assert scenes._place(owner, torch.zeros(5, 5, dtype=torch.bool), [[0.0, 0.0]], []) is None


def test_splits_share_no_clothes_and_no_photograph() -> None:
    data = FashionMNIST.load()
    for split, clothes in (("train", data.train), ("test", data.test)):
        layers = composed._clothes(split, None)
        for label in range(10):
            assert torch.equal(layers[label], composed._layers(clothes.pictures[clothes.labels == label]))
    train, test = ({p.numpy().tobytes() for p in photographs.load(split)} for split in ("train", "test"))
    assert (len(train), len(test)) == (7, 4)
    assert not train & test
    assert all("CC0" in p.notice or "public domain" in p.notice for p in photographs.PHOTOGRAPHS)


def test_sizes_spread_over_small_medium_and_large() -> None:
    boxes = torch.cat([SCENES[index][1]["boxes"] for index in range(150)])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    ranges = SCENES.area_ranges
    assert list(ranges) == ["small", "medium", "large"]
    assert ranges["small"][1] == ranges["medium"][0] and ranges["medium"][1] == ranges["large"][0]
    shares = [((area >= low) & (area < high)).float().mean().item() for low, high in ranges.values()]
    assert sum(shares) == pytest.approx(1)
    assert all(0.22 < share < 0.45 for share in shares)


def test_all_classes_come_alike() -> None:
    labels = torch.cat([SCENES[index][1]["labels"] for index in range(150)])
    assert len(SCENES.classes) == 10
    assert labels.bincount(minlength=10).min() > 0.04 * len(labels)


def test_fewer_classes() -> None:
    some = Composed(0, 20, classes=("sneaker", "bag"))
    assert (some.classes, some.category_ids) == (("sneaker", "bag"), (8, 9))
    labels = torch.cat([some[index][1]["labels"] for index in range(20)])
    assert labels.unique().tolist() == [0, 1]
    # The object is of its class: upright and at scale 1, its box has the size of one of the class's images.
    still = Composed(0, 5, classes=("bag",), ranges=Ranges(), objects=(1, 1))
    bags = FashionMNIST.load().train
    widths = {tuple(_extent(picture)) for picture in composed._layers(bags.pictures[bags.labels == 8])[:, 1]}
    for index in range(5):
        x1, y1, x2, y2 = still[index][1]["boxes"][0].tolist()
        assert (x2 - x1, y2 - y1) in widths


def _extent(mask: Tensor) -> list[float]:
    return [float(mask.any(dim).nonzero()[-1] - mask.any(dim).nonzero()[0] + 1) for dim in (0, 1)]


def test_coco() -> None:
    scenes = Composed(0, 6, classes=("bag", "coat"))
    truth = scenes.coco()
    assert truth["categories"] == [{"id": 9, "name": "bag"}, {"id": 5, "name": "coat"}]
    assert truth["images"][5] == {"id": 5, "file_name": "000005.png", "height": 128, "width": 128}
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    for index in range(6):
        target = scenes[index][1]
        mine = [a for a in truth["annotations"] if a["image_id"] == index]
        assert [a["category_id"] for a in mine] == [(9, 5)[label] for label in target["labels"]]
        for annotation, (x1, y1, x2, y2) in zip(mine, target["boxes"].tolist(), strict=True):
            assert annotation["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert annotation["area"] == (x2 - x1) * (y2 - y1)
            assert annotation["iscrowd"] == 0


def test_empty_scenes() -> None:
    image, target = Composed(0, 1, objects=(0, 0))[0]
    assert image.shape == (3, 128, 128)
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert len(Composed(0, 0)) == 0 and Composed(0, 0).coco()["images"] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"split": "val"}, 'split must be "train" or "test", got \'val\''),
        ({"count": -1}, "count must be at least 0"),
        ({"size": 16}, "size at least 32"),
        ({"objects": (3, 2)}, "objects must be"),
        ({"ranges": Ranges(shift=3)}, "shift must be 0"),
        ({"classes": ("hat",)}, "different names out of"),
        ({"classes": ()}, "different names out of"),
        ({"classes": ("bag", "bag")}, "different names out of"),
    ],
)
def test_errors(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Composed(**{"seed": 0, "count": 1, **arguments})


def test_index_out_of_range() -> None:
    with pytest.raises(IndexError, match="150 scenes, got index 150"):
        SCENES[150]


def test_warp_is_render_on_a_canvas_of_its_own() -> None:
    pictures = FashionMNIST.load().test.pictures[:30]
    poses = draw(Ranges((1.3, 2.5), (0, 90), (1, 1.2), (0, 0.1), (0, 0.1)), 30, torch.Generator().manual_seed(0))
    for k in range(30):
        drawn = warp(pictures[k : k + 1] / 255, poses, k)
        expected = render(pictures[k : k + 1], type(poses)(*(f[k : k + 1] for f in poses)), drawn.shape[-1])
        torch.testing.assert_close(drawn[None], expected, atol=1e-4, rtol=0)
        wider = render(pictures[k : k + 1], type(poses)(*(f[k : k + 1] for f in poses)), drawn.shape[-1] + 20)
        assert wider.sum() == pytest.approx(drawn.sum().item(), rel=1e-5)  # nothing was cut off


def test_warp_averages_areas_where_it_shrinks() -> None:
    picture = FashionMNIST.load().test.pictures[:1] / 255
    for factor in (2, 4):
        poses = draw(Ranges(scale=(1 / factor, 1 / factor)), 1, torch.Generator().manual_seed(0))
        # 28 / 4 is odd, the canvas is even: half a pixel apart, so only the sum agrees there.
        drawn, expected = warp(picture, poses, 0), torch.nn.functional.avg_pool2d(picture, factor)
        assert drawn.sum() == pytest.approx(expected.sum().item(), rel=1e-4)
        if factor == 2:
            torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)


def test_photographs_missing_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = photographs.load.__wrapped__
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="scikit-image, whose photographs these are, is missing"):
        load("train")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    with pytest.raises(FileNotFoundError, match=r"astronaut\.png is missing"):
        load("train")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "astronaut.png").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"astronaut\.png is not the photograph"):
        load("train")


def test_the_page_names_every_photograph_and_its_licence() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\S+)` \| (train|test) \| (.+) \|$", page, re.MULTILINE)
    assert listed == [photograph[:3] for photograph in photographs.PHOTOGRAPHS]


def test_ranges_can_be_narrowed() -> None:
    upright = replace(composed.RANGES, rotation=(0.0, 0.0), bend=(0.0, 0.0), aspect=(1.0, 1.0), scale=(2.0, 2.0))
    scenes = Composed(0, 10, objects=(1, 1), ranges=upright)
    sides = torch.cat([scenes[index][1]["boxes"] for index in range(10)])
    assert ((sides[:, 2:] - sides[:, :2]).amax(1) <= 57).all()
    assert ((sides[:, 2:] - sides[:, :2]).amax(1) >= 40).all()
