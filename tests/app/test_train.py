from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageColor

from pliant import _files, app
from pliant.app import arguments, eval, predict
from pliant.app.progress import Bar, Plain
from pliant.data import Composed
from pliant.models import checkpoint
from pliant.show import boxes
from pliant.train import DetectorRecipe, log

NETWORK = """
model:
  width: 16
  stem: small
  deform: [null, null, null, v2]
  roi_pool: align
  options: {channels: 8, hidden: 16, rpn_samples: 32, post_nms: [40, 20], rois: 16, score_threshold: 0.001}
data: {count: 10, test_count: 5, size: 64, classes: null}
optimiser: {name: sgd, lr: 0.01, weight_decay: 0.0001, warmup: 2}
batch: 4
epochs: 2
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(NETWORK)
    return str(path)


@pytest.fixture(scope="module")
def run(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that the tests share."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert app.main(["train", "detector", "--config", config, "--seed", "3", "--out", str(folder)]) == 0
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return log.read(folder / "metrics.jsonl")


def test_run_writes_down_what_it_was(run: Path) -> None:
    recipe = DetectorRecipe.of(json.loads((run / "recipe.json").read_text()))
    assert (recipe.seed, recipe.batch, recipe.model.width, recipe.data.size) == (3, 4, 16, 64)
    assert recipe.model.deform == (None, None, None, "v2")
    assert recipe == DetectorRecipe.of(checkpoint.read(run / "last.pt")["recipe"])
    assert [(r["kind"], r["step"]) for r in lines(run)] == [
        ("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("step", 4), ("evaluation", 4),
    ]  # fmt: skip


def test_printed_configuration_is_one(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            app.main(["train", "detector", *words, "--print_config"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    first = printed("--config", config, "--optimiser.lr", "0.5")
    assert "lr: 0.5" in first and "width: 16" in first
    path = tmp_path / "again.yaml"
    path.write_text(first)
    assert printed("--config", str(path)) == first


SETTINGS = """
data: {source: coco, images: 2026-11-29, annotations: Bär.json}
model:
  deform: [null, None, None, v2]
  options: {score_threshold: 1e-5, box_weights: [1.0, 2]}
optimiser: {lr: 1e-3, clip: None}
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_settings_as_people_write_them(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(SETTINGS.encode(encoding))
    parser = arguments.parser("x", "y")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(DetectorRecipe, None)

    def read(content: bytes) -> Any:
        (tmp_path / "mine.yaml").write_bytes(content)
        for words in (["--config", str(tmp_path / "mine.yaml")], [f"--config={tmp_path / 'mine.yaml'}"]):
            words, files = arguments.configured([*words, "--batch", "3"])
            assert files == [tmp_path / "mine.yaml"]
            found = parser.instantiate(arguments.parse(parser, words))
        return found

    found = read(SETTINGS.encode(encoding))
    assert (found.data.images, found.data.annotations, found.batch) == ("2026-11-29", "Bär.json", 3)
    assert found.model.deform == (None, None, None, "v2")
    assert found.model.options == {"score_threshold": 1e-5, "box_weights": [1.0, 2]}
    assert (found.optimiser.lr, found.optimiser.clip) == (1e-3, None)
    for nothing in ("", "\ufeff", "# nothing", "---", "model:\ndata: null\noptimiser: {}"):
        found = read(nothing.encode(encoding if "\ufeff" not in nothing else "utf-8"))
        assert (found.model, found.optimiser.lr) == (DetectorRecipe().model, 0.001)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"- a", "must hold settings, such as batch: 8, got a list"),
        (b"batch", "must hold settings, such as batch: 8, got a str"),
        (b"1: 2", "must hold settings"),
        (b"a: [b", "is not YAML or JSON: while parsing"),
        (b"\tmodel: 3", "is not YAML or JSON: while scanning"),
        (b"[" * 5000, "is not YAML or JSON: "),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "is not YAML or JSON: "),
        (b"\x81\x00", "is not YAML or JSON: "),
        (b"batc: 3", "batc"),
    ],
)
def test_settings_that_are_none(
    content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert app.main(["train", "detector", "--config", str(path), "--print_config"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and sentence in err


def test_a_damaged_recipe_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.pt").write_bytes((run / "last.pt").read_bytes())
    written = tmp_path / "recipe.json"
    for content in (b"", b"null", b"[]", b'{"data": {}}', b"{", b"[" * 5000, b'"\x81"', b"\xff\xfe{\x00["):
        written.write_bytes(content)
        assert app.main(["train", "detector", "--out", str(tmp_path), "--resume"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and str(written) in err
        assert written.read_bytes() == content


def test_example_is_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "coco_r50_fpn.yaml"
    with pytest.raises(SystemExit) as stopped:
        app.main(["train", "detector", "--config", str(example), "--print_config"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "lr: 0.02" in out and "depth: 50" in out and "options: {}" in out


def test_interrupted_run_goes_on(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(bar: Plain, record: dict[str, Any]) -> None:
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    whole, cut = ["--out", str(tmp_path / "whole")], ["--out", str(tmp_path / "cut")]
    more = ["--data.test_count", "0", "--data.flip", "0.5"]
    assert app.main(["train", "detector", "--config", config, *more, *whole]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Plain, "record", stopping)
        assert app.main(["train", "detector", "--config", config, *more, *cut]) == 130
    out, err = capsys.readouterr()
    assert "4 steps." in out
    folder = tmp_path / "cut"
    assert err.strip() == (
        f"Interrupted after step 1 of 4, saved in {folder}/last.pt. "
        f"Resume with: pliant train detector --out {folder} --resume"
    )
    assert app.main(["train", "detector", *cut, "--resume"]) == 0
    assert "Resumes after step 1 of 4." in capsys.readouterr().out
    assert [r["loss"] for r in lines(folder)] == [r["loss"] for r in lines(tmp_path / "whole")]


def test_evaluation_is_that_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert app.main(["eval", str(run / "best.pt"), "--json", str(out), "--batch", "3"]) == 0
    result = json.loads(out.read_text())
    recorded = next(r for r in lines(run) if r["kind"] == "evaluation" and r["step"] == result["step"])
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "per_class"):
        assert result[name] == recorded[name]
    printed = capsys.readouterr().out
    assert printed.startswith("    AP    AP50    AP75     APs     APm     APl\n")
    assert all(name in printed for name in Composed(0, 1).classes)


def test_evaluation_on_other_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = Composed(seed=9, count=3, size=64).write(tmp_path / "scenes")
    data = ["--data.source", "coco", "--data.test_images", str(annotations.parent / "images")]
    words = ["eval", str(run / "last.pt"), *data, "--data.test_annotations", str(annotations)]
    assert app.main(words) == 0
    assert json.loads((run / "evaluation.json").read_text())["pictures"] == 3
    truth = json.loads(annotations.read_text())
    categories = truth["categories"]
    # The same names with other ids, then other names with the same ids.
    ids = {category["id"]: 11 - category["id"] for category in categories}
    for entry in categories:
        entry["id"] = ids[entry["id"]]
    for entry in truth["annotations"]:
        entry["category_id"] = ids[entry["category_id"]]
    annotations.write_text(json.dumps(truth))
    capsys.readouterr()
    before = json.loads((run / "evaluation.json").read_text())
    assert app.main(words) == 0
    assert "categories: the ids of 'ankle boot' (1 and 10)" in capsys.readouterr().err
    assert json.loads((run / "evaluation.json").read_text()) == before
    for entry in categories:
        entry["name"] = f"my {entry['name']}"
    annotations.write_text(json.dumps(truth))
    assert app.main(words) == 2
    assert f"; {run}/last.pt has the categories 'T-shirt'" in capsys.readouterr().err
    own = ["--data.source", "coco", "--data.images", str(annotations.parent), "--data.hold-out", "0"]
    assert app.main(["eval", str(run / "last.pt"), *own]) == 2
    assert "no test images" in capsys.readouterr().err


def test_pictures_of_ones_own(run: Path, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = Composed(seed=9, count=5, size=64).write(tmp_path / "scenes")
    images = annotations.parent / "images"
    truth = json.loads(annotations.read_text())
    truth["annotations"] += [{"id": 900 + k, "image_id": 77, "category_id": 1, "bbox": [0, 0, 5, 5]} for k in range(30)]
    annotations.write_text(json.dumps(truth))
    out = tmp_path / "out"
    own = ["--images", str(images), f"--annotations={annotations}"]
    assert app.main(["train", "detector", "--config", config, *own, "--epochs", "1", "--out", str(out)]) == 0
    said, err = capsys.readouterr()
    assert f"4 training images of {images}, 1 test images, held out because none are named" in said
    # The commands that come next read what was written.
    assert f"Done: {out}/best.pt, " in said
    for command in ("predict", "show", "eval"):
        assert f"\n  pliant {command} {out}/best.pt" in said
    assert app.main(["eval", str(out / "best.pt")]) == 0
    assert json.loads((out / "evaluation.json").read_text())["pictures"] == 1
    capsys.readouterr()
    # Every fault of the file is told, not the first alone, up to a number.
    assert err.count("is of image 77, which is not listed; left out\n") == 20
    assert err.endswith("… and 10 more like these\n")
    data = DetectorRecipe.of(json.loads((out / "recipe.json").read_text())).data
    assert (data.source, data.images, data.annotations) == ("folder", str(images), str(annotations))
    assert (data.hold_out, data.short_side) == (0.2, 256)
    assert app.main(["eval", str(run / "last.pt"), *own]) == 0
    assert json.loads((run / "evaluation.json").read_text())["pictures"] == 5
    capsys.readouterr()
    assert app.main(["eval", str(run / "last.pt"), *own, "--split", "train"]) == 2
    assert "--split train takes the training data" in capsys.readouterr().err


def test_nothing_held_out(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = Composed(seed=9, count=4, size=64).write(tmp_path / "scenes")
    out, own = tmp_path / "out", ["--images", str(annotations.parent / "images"), "--data.hold-out", "0"]
    # The annotations are found beside the images.
    assert app.main(["train", "detector", "--config", config, *own, "--epochs", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "4 training images" in said and "no test images; " in said
    assert f"Done: {out}/best.pt, no test images. Next:" in said and "pliant eval" not in said
    assert checkpoint.read(out / "best.pt")["step"] == 1
    assert app.main(["predict", str(out / "best.pt"), str(annotations.parent / "images"), "--out", str(out / "p")]) == 0


def test_categories_are_those_of_the_training_data(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = Composed(seed=9, count=4, size=64).write(tmp_path / "scenes")
    truth = json.loads(annotations.read_text())
    used = {a["category_id"] for a in truth["annotations"]}
    assert len(used) < 10
    own = ["--images", str(annotations.parent / "images"), "--annotations", str(annotations)]
    words = ["train", "detector", "--config", config, *own, "--epochs", "1"]

    def test_set(name: str, categories: list[dict[str, Any]]) -> list[str]:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**truth, "categories": categories}))
        return ["--data.test_annotations", str(path)]

    out = ["--out", str(tmp_path / "subset")]
    fewer = test_set("fewer", [c for c in truth["categories"] if c["id"] in used])
    assert app.main([*words, *fewer, *out]) == 0
    assert "categories: the data does not list " in capsys.readouterr().err
    scores = [r for r in lines(tmp_path / "subset") if r["kind"] == "evaluation"]
    assert set(scores[0]["per_class"]) == set(Composed(0, 1).classes)
    assert app.main(["train", "detector", *out, "--resume"]) == 0
    # Categories of the training data that changed since would be other labels.
    for category, other in zip(truth["categories"][:2], truth["categories"][1::-1], strict=True):
        category["name"] = other["name"] if category["id"] == 1 else "T-shirt"
    annotations.write_text(json.dumps(truth))
    capsys.readouterr()
    assert app.main(["train", "detector", *out, "--resume"]) == 2
    assert "was trained on other categories than the training data has now, such as" in capsys.readouterr().err

    other = test_set("other", [{**c, "name": f"my {c['name']}"} for c in truth["categories"]])
    assert app.main([*words, *other, "--out", str(tmp_path / "other")]) == 2
    assert "categories are matched by name" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_nothing_to_learn_is_a_sentence(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = Composed(seed=9, count=4, size=64).write(tmp_path / "scenes")
    truth = json.loads(annotations.read_text())
    truth["annotations"] = [{**a, "iscrowd": 1} for a in truth["annotations"]]
    annotations.write_text(json.dumps(truth))
    own = ["--images", str(annotations.parent / "images"), "--annotations", str(annotations)]
    assert app.main(["train", "detector", "--config", config, *own, "--out", str(tmp_path / "x")]) == 2
    assert "no box that can be used, so there is nothing to learn" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_prediction_of_a_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = Composed(seed=9, count=3, size=64).write(tmp_path / "scenes").parent / "images"
    for name in ("notes.txt", "paper.pdf", "._000000.png"):
        (images / name).write_text("no picture")
    (images / "empty").mkdir()
    (images / "folder.png").mkdir()
    words = ["predict", str(run / "best.pt"), "--out", str(tmp_path / "out")]
    assert app.main([*words, str(images)]) == 0
    out, err = capsys.readouterr()
    assert "in 3 images" in out
    left_out = "empty/, folder.png/, notes.txt and 1 more"
    assert err == f"pliant predict: {images}: no images and left out: {left_out}\n"
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert app.main([*words, str(images / "empty")]) == 2
    assert capsys.readouterr().err == f"pliant predict: the folder {images / 'empty'} has no images\n"
    (images / "empty" / "notes.txt").touch()
    assert app.main([*words, str(images / "empty")]) == 2
    assert capsys.readouterr().err.endswith("empty has no images, only notes.txt\n")


def test_inputs_are_not_overwritten(
    run: Path, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = Composed(seed=9, count=2, size=64).write(tmp_path / "scenes")
    images, recipe, kept = annotations.parent / "images", tmp_path / "own" / "recipe.json", tmp_path / "kept.pt"
    recipe.parent.mkdir()
    recipe.write_text(Path(config).read_text())
    kept.write_bytes((run / "last.pt").read_bytes())
    (tmp_path / "link").symlink_to(images)
    # A JPEG beside a PNG of its name: the drawing of one would replace the other.
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "a.png").write_bytes((images / "000000.png").read_bytes())
    (tmp_path / "pair" / "a.jpg").write_bytes((images / "000001.png").read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(images)
    data = ["--images", str(images), "--annotations", str(annotations)]
    commands = [
        ["predict", str(run / "best.pt"), str(images), "--out", str(images)],
        ["predict", str(run / "best.pt"), str(images), "--out", "."],
        ["predict", str(run / "best.pt"), str(images), "--out", str(tmp_path / "link")],
        ["predict", str(run / "best.pt"), str(images / "000000.png"), "--out", str(images / ".." / "images")],
        ["predict", str(run / "best.pt"), str(tmp_path / "pair" / "a.jpg"), str(tmp_path / "pair" / "a.png"),
         "--out", str(tmp_path / "pair")],
        ["eval", str(kept), *data, "--json", str(annotations)],
        ["eval", str(kept), *data, "--json", str(kept)],
        ["train", "detector", "--config", str(recipe), "--out", str(recipe.parent)],
        ["train", "detector", *data[:2], "--annotations", str(recipe), "--out", str(recipe.parent)],
        ["explore", str(kept), "--export", str(kept)],
        ["explore", "--picture", str(images / "000000.png"), "--export", "000000.png"],
    ]  # fmt: skip
    for words in commands:
        assert app.main(words) == 2, words
        assert "would overwrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_folder_of_a_result_is_made(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "result.json"
    assert app.main(["eval", str(run / "best.pt"), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["pictures"] == 5


def test_prediction(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    annotations = Composed(seed=9, count=2, size=64).write(tmp_path / "a")
    first, second = sorted((annotations.parent / "images").iterdir())
    wide = tmp_path / first.name
    with Image.open(first) as picture:
        picture.resize((200, 90)).convert("L").save(wide)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    out = tmp_path / "out"
    words = [str(run / "best.pt"), str(first), str(broken), str(wide), str(second), "--threshold", "0.001"]
    assert app.main(["predict", *words, "--out", str(out)]) == 1
    said, err = capsys.readouterr()
    assert err.count("\n") == 1 and "broken.jpg cannot be read" in err
    assert "in 3 images" in said
    assert app.main(["predict", "--traceback", *words, "--out", str(out)]) == 1
    traced = capsys.readouterr().err
    assert traced.startswith("Traceback (most recent call last):\n") and "in read_image" in traced
    assert traced.endswith("\n" + err)
    names = {f"{first.stem}.png", f"{first.stem}-2.png", f"{second.stem}.png", "detections.json"}
    assert {p.name for p in out.iterdir()} == names
    with Image.open(out / f"{first.stem}-2.png") as picture:
        assert picture.size == (4 * 200, 4 * 90)  # enlarged, so that names can be read
    found = json.loads((out / "detections.json").read_text())
    sizes = {1: (64, 64), 3: (200, 90), 4: (64, 64)}
    assert {line["image_id"] for line in found} <= sizes.keys() and found
    for line in found:
        assert line["category_id"] in Composed(0, 1).category_ids
        assert 0.001 <= line["score"] <= 1
        x, y, w, h = line["bbox"]
        W, H = sizes[line["image_id"]]
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= W + 1e-3 and y + h <= H + 1e-3
    assert any(line["bbox"][0] + line["bbox"][2] > 64 for line in found if line["image_id"] == 3)
    assert app.main(["predict", str(run / "best.pt"), str(first), "--out", str(out)]) == 0


def test_boxes_are_drawn_where_they_are() -> None:
    found = {"boxes": torch.tensor([[10.0, 20.0, 30.0, 40.0]]), "scores": torch.tensor([0.9])}
    found["labels"] = torch.tensor([0])
    for factor in (1, 8):
        image = torch.zeros(3, 400 // factor, 480 // factor, dtype=torch.uint8)
        scaled = {**found, "boxes": 8 / factor * found["boxes"]}
        picture = predict.drawn(image, scaled, ("dog",))
        assert picture.size == (480, 400)  # a small image is enlarged
        assert picture.getpixel((160, 240)) == (0, 0, 0)
        edge = picture.getpixel((80, 240))
        assert edge == ImageColor.getrgb(boxes.colour(0))
        assert picture.getpixel((239, 240)) == picture.getpixel((160, 319)) == edge


def test_names_of_boxes_lie_on_the_image_and_can_be_read() -> None:
    found = {
        "boxes": torch.tensor([[0.0, 0, 90, 60], [500, 2, 640, 200], [2, 1, 95, 62], [560, 440, 640, 480]]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]), "labels": torch.tensor([0, 1, 0, 1]),
    }  # fmt: skip
    plain = torch.full((3, 480, 640), 128, dtype=torch.uint8)
    pixels = np.asarray(predict.drawn(plain, found, ("a very long name of a class", "dog")))
    # Four dark grounds with white in them, and none is cut off: white never touches the edge of the image.
    white = (pixels == 255).all(2)
    assert white.sum() > 200
    assert not (white[0].any() or white[-1].any() or white[:, 0].any() or white[:, -1].any())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], "say what to train: pliant train detector"),
        (["train", "detector", "--model.depth", "19"], "--model.depth must be 10, 18, 26, 50 or 101, got 19"),
        (["train", "detector", "--batc", "3"], "unrecognized arguments: --batc 3"),
        (["train", "detector", "--batch", "0"], "batch must be at least 1, got 0"),
        (["train", "detector", "--optimiser.clip", "0"], "clip above 0 or null, got 0.001, 100 and 0"),
        (["train", "detector", "--config", "/no/where.yaml"], "No such file or directory: '/no/where.yaml'"),
        (["train", "detector", "--config=/"], "Is a directory: '/'"),
        (["train", "detector", "--out", "/no/where", "--resume"], "there is no run to resume in /no/where"),
        (["train", "detector", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["train", "detector", "--data.source", "coco"], "say where your images are: --images DIR"),
        (["train", "detector", "--model.options", "{fc: 3}"], "model.options or model.mimic_options"),
        (["train", "detector", "--out", "/dev/null/x"], "Not a directory: '/dev/null/x'"),
        (["eval", "/no/where.pt"], "No such file or directory: '/no/where.pt'"),
        (["predict", "/no/where.pt", "x.jpg", "--out", "y"], "No such file or directory: '/no/where.pt'"),
    ],
)
def test_error_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"pliant {words[0]}: ") and sentence in err


@pytest.mark.parametrize("size", [0, 100, 20_000, 0.5, -100])
def test_a_checkpoint_cut_short(size: float, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (run / "last.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    assert app.main(["eval", str(tmp_path / "cut.pt")]) == 2
    said = f"pliant eval: {tmp_path}/cut.pt is damaged or not a checkpoint; give the last.pt or best.pt of a run\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("words", [["predict", "a", "b", "--out", "c", "--thr=1"], ["study", "geometry", "--qui"]])
def test_options_are_not_guessed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        app.main(words)
    assert stopped.value.code == 2
    assert f"error: unrecognized arguments: {words[-1]}" in capsys.readouterr().err


def test_runs_are_not_overwritten(run: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "last.pt").read_bytes()
    assert app.main(["train", "detector", "--config", config, "--out", str(run)]) == 2
    assert "holds a run; resume it (--resume) or choose another folder (--out)" in capsys.readouterr().err
    assert app.main(["train", "detector", "--out", str(run), "--resume", "--batch", "2"]) == 2
    assert "holds a run with other settings (batch)" in capsys.readouterr().err
    assert (run / "last.pt").read_bytes() == before


def test_loss_that_explodes_is_a_sentence(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--optimiser.lr", "1e30", "--optimiser.warmup", "0", "--optimiser.clip", "null"]
    assert app.main(["train", "detector", "--config", config, *wild, "--out", str(tmp_path / "x")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("\nStopped: ") and "Lower the learning rate" in err and err.count("\n") == 2
    assert app.main(["train", "detector", "--config", config, *wild, "--out", str(tmp_path / "y"), "--traceback"]) == 1
    traced = capsys.readouterr().err
    assert traced.startswith("Traceback") and "FloatingPointError: " in traced and "\nStopped: " in traced


def test_interrupted_at_once(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pliant.app.train.fit_detector", interrupted)
    assert app.main(["train", "detector", "--config", config, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "\nInterrupted: nothing is kept.\n"
    (tmp_path / "last.pt").touch()
    assert app.main(["train", "detector", "--config", config, "--out", str(tmp_path)]) == 130
    kept = f"{tmp_path}/last.pt is the last checkpoint; --resume continues from it"
    assert capsys.readouterr().err == f"\nInterrupted: {kept}.\n"


def test_full_disk_is_a_sentence(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    assert app.main(["train", "detector", "--config", config, "--out", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err == "\nThe disk is full: nothing is kept.\n"
    assert app.main(["train", "--traceback", "detector", "--config", config, "--out", str(tmp_path / "y")]) == 1
    traced = capsys.readouterr().err
    assert traced.startswith("Traceback") and ", in full\n" in traced and traced.endswith("nothing is kept.\n")


def test_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("jsonargparse", "pliant.app.train", "pliant.app.arg"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert app.main(["train", "detector"]) == 2
    assert (
        capsys.readouterr().err
        == 'pliant train: needs jsonargparse: pip install ".[train]" in a clone of the repository\n'
    )


def test_bar_tells_what_lines_tell(capsys: pytest.CaptureFixture[str]) -> None:
    step = {"kind": "step", "step": 3, "epoch": 1, "loss": 0.5, "lr": 0.1, "images_per_second": 7.0}
    scores = {"kind": "evaluation", "step": 3, "epoch": 1, "AP": 0.25, "AP50": math.nan, "AP75": 0.0, "seconds": 2.0}
    for kind in (Plain, Bar):
        with kind("A net.") as bar:
            bar.start(2, 10)
            bar.record({**step, "broken": ["x.jpg cannot be read"]})
            bar.record(scores)
        out = " ".join(capsys.readouterr().out.split())
        assert "A net. Resumes after step 2 of 10." in out
        assert "left out: x.jpg cannot be read" in out
        assert "epoch 1: loss 0.500, learning rate 0.1, 7 images/s" in out
        assert "epoch 1: AP 25.0, AP50 –, AP75 0.0 (2 s)" in out


def test_table_has_a_dash_where_nothing_is_to_be_found() -> None:
    scores = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm"), 0.125)
    assert eval.table({**scores, "APl": math.nan, "per_class": {}}).splitlines()[1].split() == ["12.5"] * 5 + ["–"]


def test_parser_wants_whole_names() -> None:
    parser = arguments.parser("x", "y")
    parser.add_argument("--lengthy", type=int)
    with pytest.raises(ValueError, match="unrecognized arguments: --len 3"):
        arguments.parse(parser, ["--len", "3"])
