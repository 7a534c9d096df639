from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pliant
from pliant.data import Resize, read_image
from pliant.models import FeatureMimic, ModelRecipe, Predictor, build_detector, bundled, checkpoint, strip_training_only
from pliant.models.predictor import detect, load_detector
from pliant.models.recipe import recorded

# Written by a run of training at commit 2c5a1ce, before this module existed.
RECORDED = Path(__file__).with_name("recorded.pt")
SCENES = sorted((Path(pliant.__file__).parent / "app/explore/bundled").glob("scene-*.png"))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(bundled.NAMES[0])


def ramps(H: int = 90, W: int = 120) -> Tensor:
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return torch.stack((2 * x, 2 * y, x + y)).to(torch.uint8)


def same(found: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> bool:
    return len(found) == len(wanted) and all(
        one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for one, other in zip(found, wanted, strict=True)
    )


def test_bundled_detector_finds_clothes(predictor: Predictor) -> None:
    assert predictor.classes == ("trouser", "pullover", "dress", "sneaker", "bag")
    # Photographs become as small as the scenes that it learned; scenes stay as they are.
    assert isinstance(predictor.resize, Resize) and predictor.resize.short == 128
    found = predictor(SCENES)
    assert len(found) == 6
    for detections in found:
        assert [(detections[key].dtype, detections[key].shape[1:]) for key in ("boxes", "scores", "labels")] == [
            (torch.float32, (4,)), (torch.float32, ()), (torch.int64, ()),
        ]  # fmt: skip
        assert (detections["scores"].diff() <= 0).all()
        assert float(detections["scores"][0]) > 0.5


def test_every_kind_of_image_is_the_same_image(predictor: Predictor, tmp_path: Path) -> None:
    image = read_image(SCENES[0])
    picture = Image.open(SCENES[0])
    array = image.permute(1, 2, 0).contiguous().numpy()
    kinds = (SCENES[0], str(SCENES[0]), picture, array, np.asfortranarray(array), image, image.float() / 255)
    wanted = detect(predictor.model, [image])
    assert len(wanted[0]["scores"])
    for kind in kinds:
        assert same(predictor([kind]), wanted), type(kind)
    # Pillow's modes are read as those of files are.
    grey = Image.fromarray((np.arange(96 * 96).reshape(96, 96) * 7).astype(np.uint16))
    grey.save(tmp_path / "grey.png")
    assert same(predictor([grey]), predictor([tmp_path / "grey.png"]))


def test_images_of_a_batch_are_those_of_the_detector(predictor: Predictor) -> None:
    images = [read_image(SCENES[0]), read_image(SCENES[1])[:, :100]]
    assert same(predictor(images), detect(predictor.model, images, resize=predictor.resize))


def test_checkpoint_of_earlier_code_is_read_and_resized_for() -> None:
    state = checkpoint.read(RECORDED)
    net = load_detector(state)
    assert not net.training and isinstance(net.mimic, FeatureMimic)
    weights = net.state_dict()
    assert weights.keys() == state["model"].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in state["model"].items())
    predictor = Predictor.load(RECORDED)
    assert isinstance(predictor.resize, Resize) and (predictor.resize.short, predictor.resize.long) == (64, 80)
    assert predictor.classes == tuple(state["classes"]) and predictor.category_ids == tuple(state["category_ids"])
    (found,) = predictor([ramps()])
    # The detections of that code; scores of the first three are at least 2 % apart.
    boxes = [
        [26.1860, 76.3681, 49.6814, 89.9763],
        [25.0296, 75.7716, 50.5403, 89.8758],
        [26.1633, 76.7852, 49.6343, 89.1305],
    ]
    torch.testing.assert_close(found["boxes"][:3], torch.tensor(boxes), rtol=0, atol=0.01)
    torch.testing.assert_close(found["scores"][:3], torch.tensor([0.021318, 0.012606, 0.012352]), rtol=1e-3, atol=0)
    assert found["labels"][:3].tolist() == [6, 9, 5]


def test_recorded_settings_are_those_of_the_recipe() -> None:
    settings = checkpoint.read(RECORDED)["recipe"]["model"]
    recipe = recorded(ModelRecipe, settings)
    assert recipe.deform == (None, None, "v1", "v2") and recipe.options["roi_hidden"] == (8,)
    stripped = strip_training_only(build_detector(recipe, 3)).state_dict()
    plain = {**settings, "mimic": None, "mimic_options": {}}
    assert build_detector(recorded(ModelRecipe, plain), 3).state_dict().keys() == stripped.keys()
    with pytest.raises(ValueError, match=r"the recipe was recorded by another version: .*'colours'"):
        recorded(ModelRecipe, {**settings, "colours": 3})


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("model", {}),
        ("model", {"more": torch.zeros(1)}),
        ("classes", ("a",)),
        ("recipe", {"model": None}),
        ("recipe", {"model": {"width": "16"}}),
        ("recipe", {"model": {"deform": 3}}),
        ("recipe", {"data": []}),
        ("recipe", {"data": {"short_side": "x", "long_side": None}}),
    ],
)
def test_parts_that_do_not_fit_get_a_sentence(part: str, damaged: Any) -> None:
    state = checkpoint.read(RECORDED)
    state[part] = {**state[part], **damaged} if part == "recipe" or "more" in damaged else damaged
    with pytest.raises(ValueError, match=r"the recipe is damaged|do not fit the recipe|ResNet: |Resize: "):
        Predictor.of(state)


@pytest.mark.parametrize("missing", ["model", "data"])
def test_recipes_of_another_version_get_a_sentence(missing: str) -> None:
    state = checkpoint.read(RECORDED)
    state["recipe"] = {name: part for name, part in state["recipe"].items() if name != missing}
    with pytest.raises(ValueError, match=f"the recipe was recorded by another version: '{missing}' is missing"):
        Predictor.of(state)


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = bundled.NAMES
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        Predictor.load(Path(name))
    checkpoint.write(tmp_path / name, checkpoint.read(RECORDED))
    assert len(Predictor.load(name).classes) == 10
    with pytest.raises(FileNotFoundError):
        Predictor.load("nothing.pt")


@pytest.mark.parametrize(
    ("images", "error", "sentence"),
    [
        ("scene.png", TypeError, "images must be a list of images, got str"),
        (torch.zeros(1, 3, 8, 8), TypeError, "images must be a list of images, got Tensor"),
        ([3], TypeError, r"images\[0\] must be a path, an image of Pillow's, an array or a tensor, got int"),
        ([torch.zeros(3, 8, 8), torch.zeros(8, 8, 3)], ValueError, r"images\[1\] must be a tensor \(3, H, W\)"),
        ([torch.zeros(3, 8, 8, dtype=torch.int64)], ValueError, r"got \(3, 8, 8\) of torch.int64"),
        ([torch.zeros(3, 0, 8)], ValueError, r"got \(3, 0, 8\) of torch.float32"),
        ([np.zeros((8, 8, 3))], ValueError, r"must be an array \(H, W, 3\) of uint8, got \(8, 8, 3\) of float64"),
        ([np.zeros((3, 8, 8), np.uint8)], ValueError, r"got \(3, 8, 8\) of uint8"),
        ([Path("nowhere.png")], FileNotFoundError, "nowhere.png is missing"),
    ],
)
def test_what_is_no_image_gets_a_sentence(
    images: Any, error: type[Exception], sentence: str, predictor: Predictor
) -> None:
    with pytest.raises(error, match=sentence):
        predictor(images)
