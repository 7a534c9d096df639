from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.data import CocoDetection, Composed, Crowns
from pliant.models import FasterRCNN, Predictor, build_detector
from pliant.models.predictor import resized
from pliant.nn import DeformConv2d
from pliant.train import DataRecipe, DetectorRecipe, ModelRecipe, OptimiserRecipe, fit_detector
from pliant.train.build import augmentation, build_data, resizing

SMALL = {"channels": 8, "hidden": 16, "rpn_samples": 32, "post_nms": (40, 20), "rois": 16}
RECIPE = ModelRecipe(width=16, stem="small", options=SMALL)
PATCHES: dict[str, Any] = {"mimic": "foreground", "mimic_options": {"size": 64, "count": 2}}

RFCN_RECIPE = ModelRecipe(
    detector="rfcn", width=16, stem="small", stride=16, roi_pool="deform_ps",
    options={"width": 16, "bins": 3, "rpn_channels": 16, "rpn_samples": 32, "post_nms": (40, 20)},
)  # fmt: skip

DETR_RECIPE = ModelRecipe(
    detector="deformable_detr", width=16, stem="small",
    options={"channels": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "hidden": 32, "queries": 10},
)  # fmt: skip


def test_recipe_becomes_a_network() -> None:
    recipe = replace(
        RECIPE, depth=26, deform=(None, "v1", None, "v2"), offset_groups=2, mask_scale=1.0, dilations=(1, 1, 1, 3),
        mimic="background", mimic_options={"size": 64}, frozen_bn=True, frozen_stages=2,
    )  # fmt: skip
    net = build_detector(recipe, 3)
    assert isinstance(net, FasterRCNN) and net.mimic is not None
    layers = [m for m in net.modules() if isinstance(m, DeformConv2d)]
    assert [(m.version, m.offset_groups, m.dilation) for m in layers] == [(1, 2, (1, 1))] * 2 + [(2, 2, (3, 3))] * 2
    assert (net.mimic.foreground, net.mimic.background, net.mimic.size) == (False, True, 64)
    frozen = {name.split(".")[1] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_detector(RECIPE, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


@pytest.mark.parametrize("boxes", [0, 2])
@pytest.mark.parametrize(
    "recipe",
    [RECIPE, replace(RECIPE, **PATCHES), replace(RECIPE, neck="c4"), RFCN_RECIPE, DETR_RECIPE],
    ids=["fpn", "mimic", "c4", "rfcn", "detr"],
)
def test_all_weights_are_in_the_graph(recipe: ModelRecipe, boxes: int) -> None:
    """DistributedDataParallel would wait for a gradient that does not come."""
    net = build_detector(recipe, 3)
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40], [20, 20, 60, 50]])[:boxes], "labels": torch.arange(2)[:boxes]}
    sum(net([torch.rand(3, 64, 64)] * 2, [target] * 2).values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_trains_in_either_precision(precision: Any) -> None:
    # Fitted to two pictures: a network that computes what it should learns them.
    recipe = DetectorRecipe(
        model=replace(RECIPE, deform=(None, None, None, "v2"), **PATCHES), precision=precision, steps=30, batch=2,
        optimiser=OptimiserRecipe(name="adamw", lr=3e-3, warmup=0, milestones=()),
    )  # fmt: skip
    data = Composed(seed=1, count=2, size=64)
    losses = [r["loss"] for r in fit_detector(build_detector(recipe.model, len(data.classes)), data, recipe)]
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


def test_pretrained_weights_are_loaded_once(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pt"
    state = {name: torch.full_like(t, 0.25) for name, t in build_detector(RECIPE, 3).backbone.state_dict().items()}
    torch.save(state, path)
    recipe = replace(RECIPE, weights=str(path))
    assert (build_detector(recipe, 3).backbone.conv1.weight == 0.25).all()
    path.unlink()
    build_detector(recipe, 3, pretrained=False)
    with pytest.raises(FileNotFoundError):
        build_detector(recipe, 3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"roi_pool": "ps"}, "FasterRCNN: roi_pool must be one of 'align', 'deform', 'modulated', got 'ps'"),
        (
            {"detector": "rfcn", "roi_pool": "align", "options": {}},
            "RFCN: roi_pool must be 'ps' or 'deform_ps', got 'align'",
        ),
        ({"detector": "rfcn", "mimic": "both"}, r"model\.mimic needs faster_rcnn, got rfcn"),
        (
            {"detector": "deformable_detr", "roi_pool": "align", "options": {}},
            "model.roi_pool must be null with deform",
        ),
        ({"detector": "deformable_detr", "options": {"heads": 3}}, "channels must be a multiple of 4 and of heads=3"),
        ({"options": {"fc": 3}}, "model.options or model.mimic_options: .*'fc'"),
        ({"frozen_stages": 2}, "frozen_stages must be 0 to 5 and needs frozen_bn"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_detector(replace(RECIPE, **settings), 3)


def test_recipe_becomes_data(tmp_path: Path) -> None:
    composed = DataRecipe(count=3, test_count=2, size=64, seed=4)
    train, test = build_data(composed, "train"), build_data(composed, "test")
    assert isinstance(train, Composed) and isinstance(test, Composed)
    assert (len(train), train.split, train.size, train.seed) == (3, "train", 64, 4)
    assert (len(test), test.split) == (2, "test")
    assert build_data(replace(composed, test_count=0), "test") is None
    crowns = build_data(DataRecipe(source="crowns", size=100), "test")
    assert isinstance(crowns, Crowns) and max(crowns[0][0].shape[1:]) == 100

    annotations = train.write(tmp_path)
    coco = DataRecipe(source="coco", images=str(tmp_path / "images"), annotations=str(annotations))
    assert isinstance(build_data(coco, "train"), CocoDetection)
    assert build_data(coco, "test") is None
    assert len(build_data(replace(coco, test_annotations=str(annotations)), "test")) == 3
    with pytest.raises(ValueError, match="say where your images are: --images DIR"):
        build_data(DataRecipe(source="coco"), "train")


@pytest.mark.parametrize(("settings", "side"), [({}, 128), ({"size": 96}, 96)])
def test_a_photograph_is_shown_at_the_size_of_the_scenes(settings: dict[str, Any], side: int) -> None:
    """A detector of composed scenes meets large photographs: scenes stay as they are, photographs become as small."""
    recipe = DetectorRecipe(DataRecipe(flip=0.0, **settings), RECIPE)
    scenes = build_data(recipe.data, "train")
    assert scenes is not None
    random = torch.Generator()
    assert torch.equal(augmentation(recipe.data)(*scenes[0], random)[0], scenes[0][0])
    state = {"recipe": asdict(recipe), "model": build_detector(RECIPE, 2).state_dict(), "classes": ("a", "b")}
    resize = Predictor.of({**state, "category_ids": (1, 2)}).resize
    assert resized(torch.zeros(3, 2 * side + 10, 3 * side + 15), resize).shape == (3, side, 3 * side // 2)


def test_recipe_becomes_transforms() -> None:
    image = torch.arange(3 * 20 * 40).remainder(251).to(torch.uint8).view(3, 20, 40)
    target = {
        "boxes": torch.tensor([[10.0, 4, 20, 12]]), "labels": torch.tensor([0]), "ignore": torch.tensor([False]),
    }  # fmt: skip

    def changed(**settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        recipe = DataRecipe(**{"flip": 0.0, **settings})
        result, boxes = augmentation(recipe)(image, target, torch.Generator().manual_seed(0))
        return result, boxes["boxes"]

    assert torch.equal(changed(short_side=0)[0], image)
    flipped, boxes = changed(short_side=0, flip=1.0)
    assert torch.equal(flipped, image.flip(2)) and boxes.tolist() == [[20, 4, 30, 12]]
    resized, boxes = changed(short_side=40, long_side=60)
    assert resized.shape == (3, 30, 60) and boxes.tolist() == [[15, 6, 30, 18]]
    assert changed(crop=16)[0].shape == (3, 16, 16)
    assert changed(short_side=0, scale=(2.0, 2.0), crop=30)[0].shape == (3, 30, 30)
    coloured = changed(short_side=0, colour=0.5)[0]
    assert coloured.shape == image.shape and not torch.equal(coloured, image)
    assert resizing(DataRecipe("crowns")) is None
    assert resizing(DataRecipe(short_side=40))(image, target, torch.Generator())[0].shape == (3, 40, 80)
