"""The command line on a Deformable DETR: train, predict, eval, show, and what the explorer lists."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from pliant import app
from pliant.app.explore import networks
from pliant.app.explore.look import look
from pliant.app.explore.pictures import Picture
from pliant.data import Composed, read_image
from pliant.models import DeformableDETR, Predictor
from pliant.train import DetectorRecipe, build_detector, fit_detector, log

EXAMPLE = Path(__file__).parents[2] / "examples" / "deformable_detr.yaml"
SMALL = ("--data.count", "8", "--data.test-count", "4", "--data.size", "64", "--batch", "4", "--steps", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run of the recipe, whose detections are kept whatever their score."""
    folder = tmp_path_factory.mktemp("runs") / "detr"
    settings = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    settings["model"]["options"]["score_threshold"] = 0.0
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert app.main(["train", "detector", "--config", str(config), *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "scene.png"
    scene, _ = Composed(3, 1, size=96)[0]
    Image.fromarray(scene.permute(1, 2, 0).numpy()).save(path)
    return path


def test_the_run_is_the_recipe(run: Path) -> None:
    records = log.read(run / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert {"classification", "box", "giou", "proposal_classification", "proposal_box", "proposal_giou"} <= set(
        steps[0]
    )
    scored = [record for record in records if record["kind"] == "evaluation"]
    # Offsets of the backbone's convolutions and of every attention are counted.
    names = set(scored[-1]["offsets"])
    assert {"encoder.0.attention", "decoder.2.attention", "backbone.layer4.0.conv2"} <= names


def test_a_checkpoint_there_and_back(run: Path, image: Path, tmp_path: Path) -> None:
    recipe = replace(DetectorRecipe.of(json.loads((run / "recipe.json").read_text(encoding="utf-8"))), steps=2)
    data = Composed(1, 8, size=64, classes=recipe.data.classes)
    model = build_detector(recipe.model, len(data.classes))
    fit_detector(model, data, recipe, folder=tmp_path)
    predictor = Predictor.load(tmp_path / "last.pt")
    assert isinstance(predictor.model, DeformableDETR) and predictor.model.groups == 4
    pixels = read_image(image).float() / 255
    (before,), (after,) = model.eval()([pixels]), predictor.model([pixels])
    assert len(before["boxes"]) == 100 and all(torch.equal(before[key], after[key]) for key in before)


def test_its_backbone_starts_from_the_bundled_one(run: Path) -> None:
    ours = Predictor.load(run / "last.pt").model.backbone.conv1.weight
    bundled = Predictor.load("mdconv-c3-c5-mdpool").model.backbone.conv1.weight
    # Four steps of warm-up hardly change it.
    assert 0 < (ours - bundled).abs().max() < 1e-3


def test_predict_and_eval(run: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["predict", str(run / "best.pt"), str(image), "--out", str(tmp_path), "--threshold", "0"]) == 0
    assert "100 objects in 1 images" in capsys.readouterr().out and (tmp_path / "scene.png").exists()
    assert app.main(["eval", str(run / "best.pt")]) == 0
    assert "AP" in capsys.readouterr().out


def test_show_draws_where_queries_look(run: Path, image: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "show"
    assert app.main(["show", str(run / "best.pt"), str(image), "--out", str(out), "--evaluations", "2"]) == 0
    files = {path.name for path in out.iterdir()}
    assert {"picture.png", "taps.png", "support.png", "history.png", "report.html"} <= files
    assert {f"attention-{i}.png" for i in (1, 2, 3)} <= files
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "decoder.2.attention" in page and "Yellow: the box that is explained" in page
    assert "The detector pools no boxes: none is explained." in page


def test_the_explorer_lists_its_boxes(run: Path, image: Path) -> None:
    network = networks.read(run / "best.pt")
    found = look(network, Picture("scene", "scene", "scene", read_image(image)))["detection"]
    assert found["proposals"] == [] and found["bins"] is None
    assert all(one["roi"] == one["box"] for one in found["objects"])
