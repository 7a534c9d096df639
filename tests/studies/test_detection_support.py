"""Where trained detectors look: the measures on networks whose answers are known, and what the report says of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pliant.models import build_detector, strip_training_only
from pliant.nn import DeformConv2d
from pliant.show.influence import At, OfBox, locations, receptive_field, sensitivities
from pliant.studies.detection import CONTESTANTS, Protocol, Task, support
from pliant.studies.detection.protocol import Kept, shown
from pliant.studies.detection.report import support as section
from pliant.studies.detection.report.results import Results
from pliant.studies.measures import sample_positions
from pliant.studies.report.statistics import crossed

from .test_detection_measures import Two
from .test_detection_report import folder, run, write


def _model(name: str) -> Any:
    recipe = Protocol.of("quick").recipe_of(Task(name, "composed", 0), 100)
    torch.manual_seed(0)
    return strip_training_only(build_detector(recipe.model, 1)).eval()


def test_one_pass_gives_what_two_give() -> None:
    model, picture = _model("mdconv-c3-c5-mdpool"), shown(Two()[0][0])
    for node in (At("backbone.layer4", (1, 1)), OfBox((8.0, 8, 24, 24))):
        field, found = sensitivities(model, picture, node)
        expected = receptive_field(model, picture, node)
        np.testing.assert_allclose(field, expected, rtol=1e-4, atol=1e-5 * expected.max())
        alone = locations(model, picture, node)
        assert found.keys() == alone.keys()
        for name, strength in alone.items():
            least = 1e-5 * strength.strength.max()
            np.testing.assert_allclose(found[name].strength, strength.strength, rtol=1e-4, atol=least)


def test_points_lie_within_the_edges_of_a_box() -> None:
    """Pixel 2 covers 2 to 3: its centre is inside of a box that begins at 2.5, not of one that ends there."""
    at = torch.tensor([[2.0, 2.0], [2.0, 5.0]])
    assert support.within(torch.tensor([2.5, 2.5, 4, 4]), at).tolist() == [True, False]
    assert support.within(torch.tensor([0, 0, 2.5, 2.5]), at).tolist() == [False, False]


def test_positions_of_samples_in_the_map() -> None:
    layer = DeformConv2d(1, 1, 3, stride=2, padding=1)
    offset = torch.zeros(1, 18, 2, 2)
    offset[:, 1] = 0.25  # x of the first tap
    at = sample_positions(layer, offset)[0, 0]
    assert at[0, 0, :, 0, 0].tolist() == [-1, -0.75]
    assert at[2, 1, :, 1, 0].tolist() == [3, 0]


def test_samples_are_measured_in_pixels_of_the_image() -> None:
    """Without offsets the samples of c3 to c5 stand on the centres of the pixels of their input maps."""
    model = _model("dconv-c3-c5")
    found = support._samples(model, Two()[0][0])
    assert len(found) == 6
    at, scale = found["backbone.layer4.0.conv2"]
    assert scale == 128 / at.shape[1]
    middle = at[4]  # the middle tap of nine
    want = torch.stack(torch.meshgrid(*[(torch.arange(at.shape[1]) + 0.5) * scale - 0.5] * 2, indexing="ij"), -1)
    torch.testing.assert_close(middle, want)


def test_a_box_of_the_whole_image_has_nothing_outside() -> None:
    class All(Two):
        def __getitem__(self, index: int):
            image, target = super().__getitem__(index)
            return image, target | {"boxes": torch.tensor([[0.0, 0, 128, 128]]), "ignore": torch.zeros(1).bool()}

    found = support.measured(_model("regular"), Kept(All()), regions=1)
    assert found["image"] == [0, 1] and found["size"] == ["large", "large"]
    for node in support.NODES:
        assert found[f"{node} field"] == [0, 0]
        assert found[f"{node} region"] == [0, None]  # searched in one image alone
        assert 1 <= found[f"{node} region_pixels"][0] <= 128 * 128
        assert all(1 <= n <= 128 * 128 for n in found[f"{node} field_pixels"])
        # Samples in the padding are outside of the image.
        assert all(0 <= share < 0.5 for share in found[f"{node} samples"])


def test_offsets_that_lead_away_are_measured_outside() -> None:
    """All samples moved by 6 pixels of their maps to the right leave a box at the left edge."""
    model, away = _model("dconv-c3-c5"), _model("dconv-c3-c5")
    with torch.no_grad():
        for layer in away.modules():
            if isinstance(layer, DeformConv2d):
                layer.conv_offset.bias[1::2] = 6.0
    still, moved = (support.measured(net, Kept(Two()), regions=0) for net in (model, away))
    assert still["c5 samples"][0] < 0.9 < moved["c5 samples"][0]
    assert moved["c5 field"][0] > still["c5 field"][0]
    assert still["c5 region"] == [None] * 4


def test_a_regular_network_is_measured_as_it_is() -> None:
    """The offsets of 0 that it gets for the measure change nothing."""
    model = _model("regular")
    picture, node = shown(Two()[0][0]), At("backbone.layer4", (1, 1))
    field = torch.from_numpy(receptive_field(model, picture, node))
    found = support.measured(model, Kept(Two()), regions=0)
    inside = support.within(torch.tensor([8.0, 8, 24, 24]), support._centres(picture))
    assert found["c5 field"][0] == pytest.approx(float(field[~inside].sum() / field.sum()), rel=1e-3)


def test_crossed_intervals_cover() -> None:
    """Of 95 % intervals at least 90 % cover the truth, whichever of seeds, images and the rest varies most."""
    random = np.random.default_rng(0)
    for seeds, images, rest in ((0, 1, 1), (1, 0, 0.1), (0.3, 1, 3), (0.1, 0.1, 3)):
        hits = 0
        for _ in range(500):
            values = seeds * random.standard_normal((3, 1)) + images * random.standard_normal((1, 50))
            found = crossed(values + rest * random.standard_normal((3, 50)))
            hits += found.low <= 0 <= found.high
        assert 0.9 <= hits / 500 <= 1.0


def test_crossed_intervals_against_values_by_hand() -> None:
    """Two seeds and two images: MS of seeds 4, of images 16, of the rest 0; F and t of so few say next to nothing."""
    found = crossed(np.array([[0.0, 4.0], [2.0, 6.0]]))
    assert found.mean == 3
    freedom = (4 + 16) ** 2 / (4**2 + 16**2)
    from scipy.special import stdtrit

    assert found.high - 3 == pytest.approx(stdtrit(freedom, 0.975) * math.sqrt(20 / 4))
    assert math.isnan(crossed(np.zeros((1, 5))).low) and math.isnan(crossed(np.zeros((3, 1))).low)


def _objects(share: float, seed: int) -> dict[str, Any]:
    """Two images of two objects: shares as given, with a little that depends on the seed and the image."""
    noise = [0.001 * ((seed * 7 + 3 * i) % 5) for i in range(4)]
    columns = {f"{n} {m}": [share + e for e in noise] for n in support.NODES for m in ("field", "samples", "region")}
    columns |= {f"{n} {m}": [round(1000 * share) + i for i in range(4)] for n in support.NODES for m in section.PIXELS}
    return {"image": [0, 0, 1, 1], "size": ["small", "large"] * 2, **columns}


def _measured(path: Path, shares: dict[str, float]) -> Path:
    names = sorted({name for claim in section.PREDICTIONS for name in (claim.ours, claim.theirs)})
    folder(path, [run(c, "composed", s, 0.5) for s in range(3) for c in names])
    folder(path / support.FOLDER, [
        {"contestant": c, "label": CONTESTANTS[c].label, "data": "composed", "seed": s, "profile": "full",
         "objects": _objects(shares.get(c, 0.5), s)}
        for s in range(3) for c in names
    ])  # fmt: skip
    return path


def test_the_report_says_what_shows(tmp_path: Path) -> None:
    said = write(_measured(tmp_path, {"dconv-c3-c5": 0.6, "full-mimic-fg": 0.55, "mdconv-c3-c5-mdpool": 0.5}))
    assert "Where networks look" in said
    head, _, rest = said.partition("Version 1 spreads beyond the object c5 shown +10.0 ▲")
    assert head and rest.split("Modulated convolution")[0].count("[") == 5
    assert "Mimicking on the foreground tightens it further box the opposite is shown +5.0 ▲" in said
    assert "Mimicking on the background does not box no difference beyond chance" in said
    assert "1.20" in rest.split("Modulated convolution")[0]  # 600 pixels for 500
    assert "nan" not in said.lower()
    assert (tmp_path / "pictures" / "support.png").is_file()


def test_what_is_damaged_or_was_not_measured_is_left_out(tmp_path: Path) -> None:
    folder(tmp_path, [run("regular", "composed", 0, 0.5)])
    said = write(tmp_path)
    assert "Where networks look" not in said and "Spatial support is not measured" in said
    folder(tmp_path / support.FOLDER, [{"contestant": "regular", "label": "x", "data": "composed", "seed": 0}])
    assert "Where networks look" not in write(tmp_path)
    lines = _measured(tmp_path, {}) / support.FOLDER / "results.jsonl"
    lines.write_text(lines.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    said = write(tmp_path)
    assert "Where networks look" in said and said.count("is half-written or damaged") == 1


def test_pairs_need_both_objects() -> None:
    def of(seed: int, field: list[float | None]) -> dict[str, Any]:
        return {"contestant": "", "data": "composed", "seed": seed, "label": "", "profile": "full",
                "objects": {"image": [0, 0, 1], "size": ["small"] * 3, "c5 field": field}}  # fmt: skip

    runs = [of(0, [0.5, None, 0.5]) | {"contestant": "regular"}, of(0, [0.6, 0.9, 0.7]) | {"contestant": "dconv-c3-c5"}]
    found = section.Measured(Path(), runs, {}).compared("dconv-c3-c5", "regular", "composed", "c5 field")
    assert found is not None and found.mean == pytest.approx(0.15)


def test_the_script_measures_a_study_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It takes the weights of a folder, and goes on where it stopped; the report shows what it measured."""
    from pliant.train import save

    folder(tmp_path, [run(c, "composed", 0, 0.5, "quick") for c in ("hog", "regular", "dconv-c3-c5")])
    (tmp_path / "models").mkdir()
    recipe = Protocol.of("quick").recipe_of(Task("dconv-c3-c5", "composed", 0), 100)
    save(strip_training_only(build_detector(recipe.model, 5)), tmp_path / "models" / "dconv-c3-c5-composed-0.pt")

    class Small(Kept):
        def __len__(self) -> int:
            return 2

    plain = Protocol.images
    monkeypatch.setattr(support, "REGIONS", 0)
    monkeypatch.setattr(Protocol, "images", lambda self, *args: Small(plain(self, *args).data))
    support.main(tmp_path)
    said = capsys.readouterr().out
    assert "dconv-c3-c5-composed-0: " in said and "regular" not in said
    lines = (tmp_path / "support" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["contestant"] for line in lines] == ["dconv-c3-c5"]
    write(tmp_path)
    assert (tmp_path / "pictures" / "support-example.png").is_file()
    support.main(tmp_path)
    assert "dconv-c3-c5-composed-0" not in capsys.readouterr().out
    assert Results.read(tmp_path) and section.read(Results.read(tmp_path)) is not None
