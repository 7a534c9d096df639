from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.app import main
from pliant.models import build_detector
from pliant.studies.detection import Protocol, Study, Task, pretraining
from pliant.studies.detection.protocol import Images
from pliant.studies.detection.single import averaged, run_one

TINY = ["study", "detection", "--quick", "--epochs", "1", "--scenes", "16"]


# Results are compared bit for bit with those of a study with a job for each core: each of its processes has one thread.
pytestmark = pytest.mark.usefixtures("one_thread")


def _run(task: Task, path: Path) -> dict[str, Any]:
    quick = Protocol.of("quick")
    protocol = replace(quick, recipe=replace(quick.recipe, epochs=1), train=16, test=2)
    told: list[tuple[int, int]] = []
    result = run_one(task, protocol, Images(protocol), "cpu", path / "net.pt", lambda *part: told.append(part))
    assert told == [(1, 1)]
    return result


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def _timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("train_seconds", "image_seconds")}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [*TINY, "--jobs", "1", "--out", str(out), "--contestants", "hog,regular,mdconv-c3-c5-mdpool"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "The quick study: few epochs, one seed. 3 runs of 1 epoch" in said
    assert "[3/3] mdconv in c3–c5 + mdpool, composed, seed 0: AP" in said
    assert "mdconv in c3–c5 + mdpool − regular, points: AP" in said
    assert said.endswith(f"Report, with curves and figures: {out / 'report.html'}\n")
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    results = _lines(out)
    assert [(r["contestant"], r["data"]) for r in results] == [
        ("hog", "composed"), ("regular", "composed"), ("mdconv-c3-c5-mdpool", "composed"),
    ]  # fmt: skip
    for r in results:
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "per_class"} == r["scores"].keys()
        assert (r["profile"], r["epochs"], r["seed"]) == ("quick", 1, 0)
        assert (r["dilation"] is None) == (r["contestant"] != "mdconv-c3-c5-mdpool")
        assert (out / "models" / f"{r['contestant']}-composed-0.pt").is_file()
    regular = results[1]
    assert regular["losses"][-1]["step"] == regular["steps"] == 2
    assert {"loss", "rpn_objectness", "rpn_box", "classification", "box"} < regular["losses"][0].keys()
    assert regular["curve"][-1]["step"] == 2
    assert regular["parameters"] < results[2]["parameters"]
    assert regular["multiply_adds"] < results[2]["multiply_adds"]
    assert (out / "pictures" / "detections-composed.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "pictures" / "sampling.png").is_file() and (out / "pictures" / "bins.png").is_file()

    # Again: nothing is repeated. With another protocol: refused in one sentence.
    before = (out / "results.jsonl").read_bytes()
    assert main(command) == 0
    assert "3 of them finished before" in capsys.readouterr().out
    assert (out / "results.jsonl").read_bytes() == before
    assert main([*command, "--epochs", "2"]) == 2
    assert "holds results of other settings (epochs, recipe, steps); choose another" in capsys.readouterr().err


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*TINY, "--jobs", "2", "--out", str(out), "--contestants", "regular,dconv-c5"]) == 0
    one = _run(Task("dconv-c5", "composed", 0), tmp_path)
    (two,) = (r for r in _lines(out) if r["contestant"] == "dconv-c5")
    # What came over JSON has the same keys and, bit for bit, the same numbers.
    assert _timeless(two) == json.loads(json.dumps(_timeless(one)))


def test_mimicking_trains_and_leaves_nothing(tmp_path: Path) -> None:
    mimic = _run(Task("regular-mimic-fg", "composed", 0), tmp_path)
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    plain = _run(Task("regular", "composed", 0), tmp_path)
    assert mimic["losses"][0]["mimic_classification"] > 0
    assert (mimic["parameters"], mimic["multiply_adds"]) == (plain["parameters"], plain["multiply_adds"])
    assert state.keys() == torch.load(tmp_path / "net.pt", weights_only=True).keys()
    assert not torch.equal(state["fc1.weight"], torch.load(tmp_path / "net.pt", weights_only=True)["fc1.weight"])


def test_crowns(tmp_path: Path) -> None:
    result = _run(Task("regular", "crowns", 0), tmp_path)
    assert list(result["scores"]["per_class"]) == ["crown"]
    assert result["steps"] == 2


def test_all_networks_of_a_seed_start_from_one_backbone(tmp_path: Path) -> None:
    protocol = replace(Protocol.of("quick"), train=16, test=2)
    first = pretraining.pretrained(Images(protocol), 0, tmp_path)
    (tmp_path / "again").mkdir()
    again = pretraining.pretrained(Images(protocol), 0, tmp_path / "again")
    states = [torch.load(path, weights_only=True) for path in (first, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    models = [
        build_detector(protocol.recipe_of(Task(name, "crowns", 0), 4, first).model, 1, seed=0)
        for name in ("regular", "mdconv-c3-c5")
    ]
    image = torch.rand(1, 3, 64, 64)
    for model in models:
        assert torch.equal(model.backbone.conv1.weight, states[0]["conv1.weight"])
    plain, deformable = (model.eval().backbone(image) for model in models)
    torch.testing.assert_close(plain, deformable)


def test_patches_show_their_objects() -> None:
    """A white object on black fills most of its patch, and every object comes once."""
    protocol = replace(Protocol.of("quick"), train=16, test=2)
    scenes = protocol.images("composed", "train", 0)
    for image, target in scenes:
        image.zero_()
        for x1, y1, x2, y2 in target["boxes"].int().tolist():
            image[:, y1:y2, x1:x2] = 255
    found = list(pretraining.patches(scenes, torch.Generator().manual_seed(0)))
    count = sum(len(target["labels"]) for _, target in scenes)
    assert len(found) == count // pretraining.RECIPE.batch
    cut = torch.cat([patch for patch, _ in found])
    assert cut.shape[1:] == (3, 32, 32)
    assert bool((cut[:, :, 15:17, 15:17].mean((1, 2, 3)) > 2).all())
    assert 0.2 < float((cut > 2).float().mean()) < 0.9


def test_averages_of_losses() -> None:
    steps = [{"kind": "step", "step": i + 1, "loss": float(i), "lr": 1.0} for i in range(10)]
    assert averaged(steps, 5) == [{"step": 2 * k, "loss": 2 * k - 1.5} for k in range(1, 6)]
    assert averaged(steps[:1], 5) == [{"step": 1, "loss": 0.0}]


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["--contestants", "regular,resnet"], "there is no contestant resnet; there are hog, regular"),
        (["--seeds", "0"], "at least 1 seed, got 0"),
        (["--scenes", "4"], "--scenes must be at least 8, got 4"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
    ):
        assert main([*TINY, "--out", str(tmp_path / "out"), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="data must be some of composed, crowns, got coco"):
        Study(Protocol.of("quick"), tmp_path, 1, data=("coco",))
