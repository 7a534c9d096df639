"""``pliant show`` on weights of both kinds and on every kind of picture."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pliant import app
from pliant.app import show
from pliant.app.explore import networks
from pliant.data import read_image
from pliant.models import build_detector, checkpoint
from pliant.nn import DeformConv2d, DeformRoIPool
from pliant.show import figures
from pliant.show.view import view
from pliant.studies.geometry import build
from pliant.train import DataRecipe, DetectorRecipe, ModelRecipe

CLASSES = ("leaf", "stone", "bird")


def scatter(model: nn.Module) -> nn.Module:
    """Let the offsets of a network that was never trained go somewhere."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, DeformConv2d):
            nn.init.normal_(layer.conv_offset.bias, std=1.0)
        elif isinstance(layer, DeformRoIPool):
            nn.init.normal_(layer.offset_fc[-1].bias, std=0.5)
    return model


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of `pliant train detector`, with small everything."""
    options = {
        "channels": 8, "hidden": 16, "pooled": 3, "roi_hidden": [8], "post_nms": [40, 10], "score_threshold": 0.0,
        "max_detections": 6, "roi_canonical": 64.0,
    }  # fmt: skip
    model = ModelRecipe(
        depth=10, width=4, stem="small", deform=(None, None, None, "v2"), roi_pool="modulated", options=options
    )
    recipe = DetectorRecipe(DataRecipe("composed", short_side=64, long_side=96), model)
    net = scatter(build_detector(recipe.model, len(CLASSES)))
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoint.write(
        path,
        {
            "format": checkpoint.FORMAT, "recipe": asdict(recipe), "classes": list(CLASSES), "category_ids": [1, 2, 3],
            "model": net.state_dict(), "step": 0,
        },
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights as `pliant study geometry` keeps them, of a network with two kinds of layers."""
    path = tmp_path_factory.mktemp("models") / "deform-v1-1-upright-0.pt"
    torch.save(scatter(build("deform-v1-1")).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "stairs.jpg"
    y, x = np.mgrid[:150, :200]
    array = np.stack((y + x // 20 * 10, x, 255 - y), -1).clip(0, 255).astype(np.uint8)
    Image.fromarray(array).save(path)
    return path


def shown(*words: object) -> int:
    return app.main(["show", *map(str, words)])


def test_a_detector_and_a_photograph_become_a_folder(
    detector: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    box = "40,30,120,100"
    command = (detector, photograph, "--box", box, "--out", out, "--evaluations", "6")
    assert shown(*command) == 0
    files = {path.name for path in out.iterdir()}
    assert {"picture.png", "sampling.png", "support.png", "support-box.png", "bins.png", "report.html"} <= files
    assert {"offsets-1.png", "offsets-2.png", "masks-1.png", "dilation.png"} <= files
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "200 × 150 pixels, seen at 85 × 64" in page
    # Nothing is fetched: every figure is inside, and there is no address.
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"(https?:)?//[a-z]|url\(|<link|<script|@import", text)
    assert page.count('src="data:image/png;base64,') == len(files) - 1
    for name in files - {"report.html"}:
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 90
    assert capsys.readouterr().out.endswith(f"{len(files) - 1} figures and the page {out / 'report.html'}\n")


def test_weights_of_a_study_and_a_picture_of_one_object(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "grey.png"
    Image.fromarray(np.pad(np.full((20, 12), 200, np.uint8), 8)).save(image)
    assert shown("--model", study, "--image", image, "--point", "14,18", "--out", tmp_path, "--evaluations", "6") == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "answer: " in page
    assert "The model is not a detector of pliant.models" in page
    assert "No deformable convolution of the model is modulated" in page
    assert not (tmp_path / "bins.png").exists()
    # 28 × 36 pixels are drawn 42 long in the middle of 64.
    point = show._moved((14.0, 18.0), torch.zeros(3, 64, 64), 42 / 36, (32 - 14 * 42 / 36, 32 - 18 * 42 / 36))
    assert point == pytest.approx((32.0, 32.0))


OWN = """
import torch
from torch import nn
from pliant.nn import DeformConv2d

def net():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding=1), nn.ReLU(), DeformConv2d(4, 4, 3, padding=1))
    nn.init.normal_(made[2].conv_offset.bias)
    return made

def grey():
    return nn.Conv2d(1, 4, 3)

def nothing():
    return 3
"""


def test_any_module_of_the_user_is_drawn(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ownnets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    words = ("--image", photograph, "--point", "150,40", "--side", "100", "--evaluations", "6", "--out", "out")
    assert shown("--model", "ownnets:net", *words) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"sampling.png", "support.png", "offsets-1.png", "masks-1.png", "dilation.png"} <= files
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "position (10, 37)" in page  # of every second pixel there is one, and (150, 40) is (75, 20) at this size
    assert "seen at 100 × 75" in page
    assert "There are no histograms of a training run" in page
    assert "" not in __import__("sys").path
    capsys.readouterr()
    for model, says in (
        ("ownnets:grey", "ownnets:grey fails on an image (1, 3, 75, 100): Given groups=1"),
        ("ownnets:nothing", "nothing() must return a torch.nn.Module, got int"),
        ("ownnets:nobody", "ownnets has no function nobody"),
        ("nowhere.at:all", "there is no module nowhere"),
    ):
        assert shown("--model", model, *words) == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1


TENSORS = """
import torch
from torch import nn
from pliant.nn import DeformConv1d, DeformConv2d, DeformConv3d

def moved(layer):
    torch.manual_seed(0)
    nn.init.normal_(layer.conv_offset.bias)
    return layer

def sequence():
    return nn.Sequential(nn.Conv1d(2, 16, 3, 2, padding=1), moved(DeformConv1d(16, 16, 3, padding=1)))

def volume():
    return moved(DeformConv3d(1, 4, 3, padding=1))

def image():
    return moved(DeformConv2d(3, 4, 3, padding=1))
"""


def test_sequences_and_volumes_are_drawn_from_files_of_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensornets.py").write_text(TENSORS)
    monkeypatch.chdir(tmp_path)
    np.save("curve.npy", np.sin(np.arange(80, dtype=np.int16)).reshape(2, 40))
    torch.save(torch.rand(1, 1, 4, 9, 10, dtype=torch.float64), "film.pt")
    assert shown("tensornets:sequence", "curve.npy", "--out", "one") == 0
    assert {path.name for path in Path("one").iterdir()} == {"taps-1.png", "report.html"}
    page = Path("one/report.html").read_text(encoding="utf-8")
    assert "2 channels of 40" in page and "Where the taps of 1 go" in page
    assert "That map has size 20 and is laid over the input end to end." in page
    assert capsys.readouterr().out == f"  taps-1.png\n1 figures and the page {Path('one/report.html')}\n"
    # Without axes for batch and channels the same.
    np.save("plain.npy", np.zeros((4, 9, 10), np.float32))
    for file in ("film.pt", "plain.npy"):
        assert shown("tensornets:volume", file, "--point", "3,4,2", "--out", "three") == 0
        page = Path("three/report.html").read_text(encoding="utf-8")
        assert (
            "taps of output (2, 4, 3) (plane, row, column; cross)" in page and "Where the taps of the model go" in page
        )
    capsys.readouterr()
    Path("text.npy").write_text("no array")
    torch.save({"input": torch.zeros(2, 40)}, "several.pt")
    np.save("words.npy", np.array(["a", "b"]))
    for words, says in (
        (("volume", "curve.npy"), "curve.npy must have shape (C, D, H, W), got (2, 40)"),
        (("image", "curve.npy"), "tensornets:image has no deformable layer of sequences or volumes"),
        (("volume", "film.pt", "--box", "1,1,2,2"), "--box is for images; film.pt is a tensor"),
        (("volume", "film.pt", "--point", "3,4"), "the point 3,4 is not on the input of 10 × 9 × 4 (x, or x, y, z)"),
        (("volume", "film.pt", "--point", "3,4,4"), "the point 3,4,4 is not on the input of 10 × 9 × 4"),
        (("volume", "film.pt", "--layer", "stem"), "'stem' is no deformable layer that the model called"),
        (("sequence", "plain.npy"), "plain.npy must have shape (C, L), got (4, 9, 10)"),
        (("sequence", "text.npy"), "text.npy holds no tensor"),
        (("sequence", "several.pt"), "several.pt must hold one tensor of real numbers, got dict"),
        (("sequence", "words.npy"), "words.npy must hold one tensor of real numbers, got ndarray"),
        (("sequence", "nowhere.npy"), "nowhere.npy"),
    ):
        assert shown(f"tensornets:{words[0]}", *words[1:], "--out", "wrong") == 2, words
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    np.save("long.npy", np.zeros((3, 40)))
    assert shown("tensornets:sequence", "long.npy") == 2
    assert "tensornets:sequence fails on an input (1, 3, 40): Given groups=1" in capsys.readouterr().err
    assert not Path("wrong").exists()


def test_a_point_of_an_image_has_two_numbers(study: Path, photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(study, photograph, "--point", "3,4,5") == 2
    assert "--point must be 2 numbers X,Y on an image, got 3" in capsys.readouterr().err


def test_histograms_of_the_run_are_drawn(detector: Path, photograph: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").write_bytes(detector.read_bytes())
    histogram = {"edges": [0.0, 1.0, 2.0], "counts": [3, 1], "unit": "map pixels", "mean": 0.6, "nonfinite": 0}
    lines = [{"kind": "step", "step": 1, "loss": 0.5}]
    lines += [{"kind": "evaluation", "step": s, "offsets": {"backbone.layer4.0.conv1": histogram}} for s in (5, 10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("--model", run / "last.pt", "--image", photograph, "--evaluations", "2", "--out", tmp_path / "out")
    assert shown(*words) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "at the 2 evaluations of the run" in page
    assert (tmp_path / "out" / "history.png").exists()


def _saved(path: Path, kind: str) -> Path:
    random = np.random.default_rng(1)
    colour = random.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        Image.fromarray(colour).save(path := path / "p.jpg", exif=exif)
        return path
    path = path / "p.png"
    if kind == "16-bit":
        Image.fromarray(random.integers(0, 65535, (40, 60)).astype(np.uint16)).save(path)
    elif kind in ("one pixel", "a line", "large"):
        size = {"one pixel": (1, 1), "a line": (900, 2), "large": (1200, 1900)}[kind]
        Image.new("RGB", size, (90, 120, 30)).save(path)
    else:
        Image.fromarray(colour).convert(kind).save(path)
    return path


@pytest.mark.parametrize(
    "kind", ["L", "LA", "RGBA", "P", "1", "CMYK", "exif", "16-bit", "one pixel", "a line", "large"]
)
@pytest.mark.parametrize("which", ["detector", "study"])
def test_pictures_of_every_kind_can_be_looked_at(
    kind: str, which: str, detector: Path, study: Path, tmp_path: Path
) -> None:
    if kind == "CMYK":
        Image.new("CMYK", (60, 40), (10, 200, 30, 0)).save(path := tmp_path / "p.tif")
    else:
        path = _saved(tmp_path, kind)
    network = networks.read(detector if which == "detector" else study)
    image = read_image(path)
    seen, factor, shift = show._seen(network, image, None)
    assert seen.shape[0] == 3
    assert max(seen.shape[1:]) <= 96
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    if kind == "exif":
        assert image.shape[1:] == (60, 40)
    picture = seen if network.detects else seen[:1]
    _, H, W = image.shape
    corner = show._moved((float(W), float(H)), seen, factor, shift)
    assert corner is not None
    look = view(network.model, picture, point=(corner[0], corner[1]), classes=network.classes)
    Ho, Wo = look.recording.map_size(look.layer)
    assert 0 <= look.position[0] < Ho
    assert 0 <= look.position[1] < Wo
    if network.detects and kind == "large":
        assert look.position == (Ho - 1, Wo - 1)


def test_figures_of_extreme_pictures_have_a_sensible_size(detector: Path) -> None:
    network = networks.read(detector)
    for size in ((2, 96), (96, 3)):
        look = view(network.model, torch.rand(3, *size), classes=network.classes)
        for maker in (figures._overview, figures._sampling, figures._dilation):
            figure = maker(look)
            with Image.open(io.BytesIO(figure.data)) as picture:
                assert min(picture.size) > 90
                assert max(picture.size) < 3000


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--image", "nowhere.png"), "nowhere.png is missing"),
        (("--image", "BROKEN"), "cannot be read"),
        (("--model", "nowhere.pt"), "nowhere.pt"),
        (("--model", "BROKEN"), "is damaged, or not a file of weights"),
        (("--point", "300,20"), "--point 300,20 is outside of"),
        (("--box", "50,20,40,60"), "--box 50,20,40,60 must be X1,Y1,X2,Y2 with"),
        (("--layer", "head"), "'head' made no map"),
        (("--layer", "fc1"), "'pool"),
        (("--error", "2"), "--error must lie between 0 and 1"),
        (("--side", "3"), "--side must be at least 8"),
    ],
)
def test_what_cannot_be_used_gets_one_sentence(
    words: tuple[str, str],
    says: str,
    detector: Path,
    photograph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken").write_bytes(photograph.read_bytes()[:300])
    given: dict[str, object] = {"--model": detector, "--image": photograph, "--out": tmp_path / "out"}
    given[words[0]] = tmp_path / "broken" if words[1] == "BROKEN" else words[1]
    assert shown(*[word for pair in given.items() for word in pair]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("pliant show: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_figure_does_not_overwrite_the_image(
    detector: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "sampling.png"
    image.write_bytes(photograph.read_bytes())
    assert shown("--model", detector, "--image", image, "--out", tmp_path, "--evaluations", "6") == 2
    assert f"{image} would overwrite {image}, which is read" in capsys.readouterr().err
    assert image.read_bytes() == photograph.read_bytes()
    assert os.listdir(tmp_path) == ["sampling.png"]


def test_numbers_are_checked_where_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--point", "3,4,5,6"), ("--point", "a,b"), ("--box", "1,2,3"), ("--point", "nan,1")):
        with pytest.raises(SystemExit):
            shown("--model", "m", "--image", "i", "--out", "o", *words)
        assert "numbers separated by commas" in capsys.readouterr().err
