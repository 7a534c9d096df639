from __future__ import annotations

import pytest
import torch
from torch import nn

from pliant.nn import DeformConv2d, LocalResponseNorm
from pliant.studies.geometry import CONTESTANTS, build
from pliant.studies.geometry.contestants import LAST, YARDSTICK, width
from pliant.train import parameters

NETS = [name for name, c in CONTESTANTS.items() if c.learned]


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_within_5_percent(name: str) -> None:
    assert parameters(build(name)) == pytest.approx(parameters(build(YARDSTICK)), rel=0.05)


@pytest.mark.parametrize("name", NETS)
def test_chain(name: str) -> None:
    net, contestant = build(name), CONTESTANTS[name]
    layers = dict(net.features.named_children())
    x = torch.rand(2, 1, 64, 64)
    assert net.features(x).shape == (2, width(name), 16, 16)
    assert net(x).shape == (2, 10)
    known = (nn.Conv2d, DeformConv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, LocalResponseNorm)
    assert all(isinstance(layer, known) for layer in layers.values())
    assert [n for n, layer in layers.items() if isinstance(layer, DeformConv2d)] == list(contestant.deformable)
    assert {layers[n].dilation for n in LAST} == {(contestant.dilation,) * 2}
    assert sum(isinstance(layer, LocalResponseNorm) for layer in layers.values()) == 2 * contestant.lrn


def test_contestants_of_the_issue_are_there() -> None:
    deformed = {(c.deformed, c.version) for c in CONTESTANTS.values()}
    assert {(0, 1), (1, 1), (2, 1), (3, 1), (3, 2)} <= deformed
    assert any(c.lrn for c in CONTESTANTS.values()) and any(c.dilation > 1 for c in CONTESTANTS.values())
    assert not CONTESTANTS["sift"].learned


def test_errors() -> None:
    with pytest.raises(ValueError, match="there is no contestant 'resnet'; there are sift, plain"):
        build("resnet")
    with pytest.raises(ValueError, match="sift is not a network"):
        build("sift")
