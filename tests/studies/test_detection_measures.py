from __future__ import annotations

import pytest
import torch

from pliant.nn import DeformConv2d
from pliant.studies.detection import Protocol, Task, measures
from pliant.studies.detection.protocol import Kept
from pliant.train.build import build_detector


class Two:
    """Two images: one small object and one large one in each."""

    classes, category_ids = ("thing",), (1,)
    area_ranges = {"small": (0.0, 400.0), "medium": (400.0, 1000.0), "large": (1000.0, 1e10)}  # noqa: RUF012

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(256, (3, 128, 128), generator=generator, dtype=torch.uint8)
        boxes = torch.tensor([[8.0, 8, 24, 24], [64, 64, 112, 112]])
        ignore = torch.zeros(2, dtype=torch.bool)
        return image, {"boxes": boxes, "labels": torch.zeros(2).long(), "ignore": ignore, "image_id": index}


def _model(name: str):
    recipe = Protocol.of("quick").recipe_of(Task(name, "composed", 0), 100)
    return build_detector(recipe.model, 1).eval()


def test_names_of_layers() -> None:
    assert [measures.layer_name(f"layer{s}.{b}.conv{c}") for s, b, c in ((2, 0, 1), (4, 1, 2))] == ["c3.1", "c5.4"]


def test_a_network_that_moves_nothing() -> None:
    model = _model("mdconv-c3-c5-mdpool")
    found = measures.watched(model, Kept(Two()))
    assert {row["layer"] for row in found["dilation"]} == {f"c{s}.{i}" for s in (3, 4, 5) for i in (1, 2)}
    assert {(row["mean"], row["sd"]) for row in found["dilation"]} == {(1.0, 0.0)}
    # Of 8 × 8 positions of c5 a 16-pixel box at (8, 8) holds the middle of one, one of 48 pixels at (64, 64) nine.
    counts = {row["group"]: row["n"] for row in found["dilation"] if row["layer"] == "c5.2"}
    assert counts == {"small": 2, "large": 18, "background": 2 * (64 - 10)}
    assert all(rho == {"rho": 0.0, "low": 0.0, "high": 0.0} for rho in found["spearman"].values())
    assert all(moves["mean_abs"] == 0 for moves in found["offsets"].values())
    assert found["bins"] == [{"group": "small", "mean": 0.0, "n": 2}, {"group": "large", "mean": 0.0, "n": 2}]


def test_offsets_show() -> None:
    model = _model("dconv-c5")
    layer = model.backbone.layer4[0].conv2
    assert isinstance(layer, DeformConv2d)
    with torch.no_grad():
        layer.conv_offset.bias[0::2] = torch.tensor([-1.0, -1, -1, 0, 0, 0, 1, 1, 1])  # rows twice as far apart
    found = measures.watched(model, Kept(Two()))
    means = {(row["layer"], row["group"]): row["mean"] for row in found["dilation"]}
    assert means["c5.2", "large"] == pytest.approx(1.5)
    assert means["c5.1", "large"] == 1
    assert found["offsets"]["c5.2"]["mean_abs"] == pytest.approx(1 / 3)
    assert found["bins"] is None


def test_regular_networks_have_nothing_to_watch() -> None:
    assert measures.watched(_model("regular"), Kept(Two())) == dict.fromkeys(measures.NAMES)


def test_shifts_are_in_shares_of_the_box() -> None:
    """Offsets of (3, 4) times γ = 0.1 move every bin by half of the box, whatever its size."""
    model = _model("dconv-c3-c5-dpool")
    bias = model.pool.deform.offset_fc[-1].bias
    with torch.no_grad():
        bias[:49], bias[49:] = 3.0, 4.0
        image, target = Two()[0]
        shifts, masks = measures.bin_shifts(model, image, target["boxes"])
    torch.testing.assert_close(shifts, torch.tensor([0.3, 0.4]).view(1, 2, 1, 1).expand(2, 2, 7, 7))
    assert masks is None
    found = measures.moved_bins(model, Kept(Two()))
    assert [(row["group"], row["mean"]) for row in found] == [
        ("small", pytest.approx(0.5)),
        ("large", pytest.approx(0.5)),
    ]
