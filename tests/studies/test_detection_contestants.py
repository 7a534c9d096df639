from __future__ import annotations

import dataclasses

import pytest
import torch

from pliant.models import FasterRCNN
from pliant.nn import DeformConv2d
from pliant.studies.detection import CONTESTANTS, DATA, QUICK, Protocol, Task
from pliant.studies.detection.contestants import find
from pliant.studies.detection.protocol import Images, size_of
from pliant.train.build import build_detector

NETS = [name for name, c in CONTESTANTS.items() if c.learned]


@pytest.mark.parametrize("name", NETS)
def test_networks_are_what_they_are_called(name: str) -> None:
    recipe = Protocol.of("quick").recipe_of(Task(name, "composed", 0), 100)
    model = build_detector(recipe.model, 5)
    assert isinstance(model, FasterRCNN)
    layers = [layer for layer in model.modules() if isinstance(layer, DeformConv2d)]
    assert len(layers) == (6 if "c3-c5" in name or name.startswith("full") else 2) * ("dconv" in name or "full" in name)
    assert {layer.version for layer in layers} <= ({2} if "mdconv" in name or "full" in name else {1})
    assert (model.pool.deform is not None) == ("dpool" in name or "full" in name)
    assert (model.mimic is not None) == ("mimic" in name)
    dilated = [layer for layer in model.backbone.modules() if getattr(layer, "dilation", (1, 1)) == (2, 2)]
    assert len(dilated) == {"dilated-c5": 2, "dilated-c3-c5": 6}.get(name, 0)


def test_contestants_of_the_issue_are_there() -> None:
    assert {c.mimic for c in CONTESTANTS.values() if c.roi_pool == "modulated"} == {
        None, "foreground", "background", "both",
    }  # fmt: skip
    assert not CONTESTANTS["hog"].learned
    assert set(QUICK) < set(CONTESTANTS) and "regular" in QUICK and "hog" in QUICK
    assert find("regular").deformable is False and find("dconv-c5").deformable
    with pytest.raises(ValueError, match="there is no contestant 'resnet'; there are hog, regular"):
        find("resnet")


def test_all_do_as_many_steps_and_only_differ_where_they_say() -> None:
    protocol = Protocol.of("full")
    for data in DATA:
        recipes = [protocol.recipe_of(Task(name, data, 0), 40) for name in NETS]
        assert {r.steps for r in recipes} == {protocol.steps}
        same = {
            str(dataclasses.asdict(dataclasses.replace(
                r, model=dataclasses.replace(
                    r.model, deform=(None,) * 4, dilations=None, roi_pool="align", mimic=None, mimic_options={},
                    options={k: v for k, v in r.model.options.items() if k != "roi_hidden"},
                )
            )))
            for r in recipes
        }  # fmt: skip
        assert len(same) == 1


def test_tested_as_often_as_the_protocol_says() -> None:
    protocol = Protocol.of("full")
    for images in (32, protocol.train):
        recipe = protocol.recipe_of(Task("regular", "composed", 0), images)
        epochs = protocol.steps // (images // recipe.batch)
        assert protocol.evaluations <= epochs // recipe.evaluate_every <= protocol.evaluations + 1


def test_every_seed_trains_on_other_scenes_and_is_tested_on_the_same() -> None:
    protocol = dataclasses.replace(Protocol.of("quick"), train=16, test=4)
    images = Images(protocol)
    (first, test), (second, again) = (images.of(Task("regular", "composed", seed)) for seed in (0, 1))
    assert not torch.equal(first[0][0], second[0][0])
    assert test is again and len(test) == 4 and len(first) == 16
    assert test.coco() is again.coco()
    assert test[0] is test[0]
    assert len(list(test)) == 4


def test_sizes() -> None:
    ranges = {"small": (0.0, 100.0), "medium": (100.0, 400.0), "large": (400.0, 1e10)}
    boxes = {"small": [0.0, 0, 9, 9], "medium": [5.0, 5, 15, 15], "large": [0.0, 0, 20, 20]}
    assert all(size_of(torch.tensor(box), ranges) == size for size, box in boxes.items())


def test_unknown_profile() -> None:
    with pytest.raises(ValueError, match=r"must be one of \('quick', 'full'\), got 'long'"):
        Protocol.of("long")
