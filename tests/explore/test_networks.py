from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pliant.app.explore import networks
from pliant.app.explore.networks import BUNDLED, SMALL, Network
from pliant.app.explore.pack import about
from pliant.models import ResNet, checkpoint
from pliant.models import bundled as detectors
from pliant.models.two_stage import TwoStage
from pliant.nn import DeformConv2d
from pliant.show.recording import record
from pliant.studies.geometry import build
from pliant.train import DataRecipe, DetectorRecipe, build_data


def test_bundled_networks_are_deformable_and_small(bundled: dict[str, Network]) -> None:
    assert list(bundled) == list(SMALL)
    for network in bundled.values():
        assert any(isinstance(layer, DeformConv2d) for layer in network.model.modules())
        assert not network.model.training
    assert sum(path.stat().st_size for folder in (BUNDLED, detectors.FOLDER) for path in folder.iterdir()) < 900_000


@pytest.mark.parametrize("name", detectors.NAMES)
def test_bundled_detector_has_the_settings_of_the_study(name: str) -> None:
    state = detectors.read(name)
    del state["model"]
    # JSON has no tuples.
    assert state == json.loads(json.dumps(about(name)))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("depth", [10, 26])
def test_layers_have_the_papers_names(depth: int, stem: str) -> None:
    class Detector(TwoStage):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.backbone = ResNet(depth, deform=(None, None, None, "v1"), width=2, stem=stem)

    network = Network("a", "a", "", Detector().eval(), (), 64)
    steps = record(network.body(), torch.rand(3, 64, 64)).steps("")
    named = list(zip(network.titles([(name, step.taps) for name, step in steps]), dict(steps).values(), strict=True))
    big = [name for name, step in named if len(step.regular) > 1]
    # A basic block of two, or two bottlenecks with one 3×3 convolution each, in every stage.
    inside = ("0.conv1", "0.conv2") if depth == 10 else ("0.conv2", "1.conv2")
    stages = [f"backbone.layer{stage}.{n}" for stage in (1, 2, 3, 4) for n in inside]
    assert big == ["backbone.conv1", *(["backbone"] if stem == "imagenet" else []), *stages]
    assert [name for name, step in named if step.offset is not None] == stages[-2:]


def test_own_modules_share_their_weights(bundled: dict[str, Network]) -> None:
    network = bundled["mdconv-c3-c5-mdpool"]
    own = network.own()
    modules = set(map(id, network.model.modules()))
    assert not modules & set(map(id, own.model.modules()))
    for mine, theirs in zip(own.model.state_dict().values(), network.model.state_dict().values(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()


def test_checkpoint_of_a_detector_is_read(grouped: Path) -> None:
    network = networks.read(grouped)
    assert network.detects and network.classes == ("cat", "dog") and network.side == 96
    assert network.label.endswith("/best.pt") and network.about == "Detects cat, dog."


@pytest.mark.parametrize("source", ["composed", "crowns"])
def test_pictures_are_as_large_as_those_it_learned_from(source: str, grouped: Path, tmp_path: Path) -> None:
    state = checkpoint.read(grouped)
    recipe = DetectorRecipe.of(state["recipe"])
    recipe = replace(recipe, data=DataRecipe(source))
    checkpoint.write(tmp_path / "last.pt", {**state, "recipe": asdict(recipe)})
    test = build_data(recipe.data, "test")
    assert test is not None
    assert networks.read(tmp_path / "last.pt").side == max(test[0][0].shape)


def test_weights_of_a_study_are_read(tmp_path: Path) -> None:
    net = build("plain-lrn")
    torch.save(net.state_dict(), tmp_path / "plain-lrn-upright-3.pt")
    network = networks.read(tmp_path / "plain-lrn-upright-3.pt")
    assert not network.detects and len(network.classes) == 10
    torch.testing.assert_close(network.model.state_dict(), net.state_dict())
    steps = record(network.body(), torch.rand(1, 64, 64)).steps("")
    assert [name for name, _ in steps] == ["conv1", "pool1", "conv2", "conv3", "conv4", "conv5"]


def test_what_is_no_network_gets_a_sentence(tmp_path: Path) -> None:
    text, other, unfit, module = (tmp_path / name for name in ("a.pt", "b.pt", "plain-upright-0.pt", "c.pt"))
    text.write_text("not weights")
    torch.save({"x": torch.ones(1)}, other)
    torch.save({"x": torch.ones(1)}, unfit)
    torch.save(DeformConv2d(1, 1, 3), module)
    for path, match in (
        (text, "damaged, or not a file of weights .*; use best.pt or last.pt of `pliant train detector`"),
        (other, "does not say which network its weights belong to; use best.pt or last.pt"),
        (module, r"holds code \(pliant.ops.conv.modules.convolutions.DeformConv2d.*\) that loading would run; use"),
        (unfit, "do not fit the contestant plain"),
    ):
        with pytest.raises(ValueError, match=match):
            networks.read(path)
    with pytest.raises(FileNotFoundError):
        networks.read(tmp_path / "none.pt")
