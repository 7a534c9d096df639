"""The contestants of the geometry study: one small network in several variants, all with as many parameters."""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d, LocalResponseNorm
from pliant.train import parameters

CLASSES = 10
LAST = ("conv3", "conv4", "conv5")  # the layers in which contestants differ
STEM = 16
WIDTH = 20  # channels of these layers in the yardstick
YARDSTICK = "deform-v2-3"  # every network has its number of parameters, within 5 %


@dataclass(frozen=True)
class Contestant:
    """One entrant: `deformed` last layers of `version`, or fixed `dilation`, or local response normalization."""

    name: str
    label: str
    deformed: int = 0
    version: int = 1
    dilation: int = 1
    lrn: bool = False
    learned: bool = True  # False: no network, hand-made features

    @property
    def deformable(self) -> tuple[str, ...]:
        """Return the names of the deformable layers."""
        return LAST[len(LAST) - self.deformed :]


CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("sift", "SIFT, bag of words, linear SVM", learned=False),
        Contestant("plain", "plain CNN"),
        Contestant("plain-lrn", "plain CNN + LRN", lrn=True),
        Contestant("dilated-2", "fixed dilation 2", dilation=2),
        Contestant("dilated-3", "fixed dilation 3", dilation=3),
        Contestant("deform-v1-1", "deformable v1, 1 layer", deformed=1),
        Contestant("deform-v1-2", "deformable v1, 2 layers", deformed=2),
        Contestant("deform-v1-3", "deformable v1, 3 layers", deformed=3),
        Contestant("deform-v2-3", "deformable v2, 3 layers", deformed=3, version=2),
    )
}


class Net(nn.Module):
    """A chain of five 3×3 convolutions, the average over the map, and a linear classifier.

    `features` runs from the canvas (N, 1, 64, 64) to (N, width, 16, 16): conv1 halves the map, pool1 halves it again,
    the others keep its size. Every convolution is followed by batch normalization and a ReLU; with LRN, conv1
    and conv2 by a local response normalization too, as in AlexNet.
    """

    def __init__(self, contestant: Contestant, width: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()

        def add(number: int, convolution: nn.Module, channels: int) -> None:
            layers[f"conv{number}"] = convolution
            layers[f"bn{number}"] = nn.BatchNorm2d(channels)
            layers[f"relu{number}"] = nn.ReLU()
            if contestant.lrn and number < 3:
                # AlexNet's constants hardly change responses of unit variance: these inhibit visibly.
                layers[f"lrn{number}"] = LocalResponseNorm(5, alpha=1.0, beta=0.75, k=1.0)

        add(1, nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), 16)
        layers["pool1"] = nn.MaxPool2d(2)
        add(2, nn.Conv2d(16, STEM, 3, padding=1, bias=False), STEM)
        channels = STEM
        for number, name in enumerate(LAST, 3):
            d = contestant.dilation
            if name in contestant.deformable:
                layer: nn.Module = DeformConv2d(
                    channels, width, 3, padding=d, dilation=d, bias=False, version=contestant.version
                )
            else:
                layer = nn.Conv2d(channels, width, 3, padding=d, dilation=d, bias=False)
            add(number, layer, width)
            channels = width
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(input).mean((2, 3)))
        return logits


def build(contestant: str) -> Net:
    """Return the network of a contestant, newly initialised from torch's generator.

    Raises:
        ValueError: there is no such contestant, or it is no network.
    """
    entrant = find(contestant)
    if not entrant.learned:
        raise ValueError(f"geometry: {contestant} is not a network")
    return Net(entrant, width(contestant))


def find(contestant: str) -> Contestant:
    """Return a contestant by its name."""
    if contestant not in CONTESTANTS:
        raise ValueError(f"geometry: there is no contestant {contestant!r}; there are {', '.join(CONTESTANTS)}")
    return CONTESTANTS[contestant]


@functools.cache
def width(contestant: str) -> int:
    """Return the width of the last layers that brings the contestant closest to the yardstick's parameters."""

    def weigh(name: str, width: int) -> int:
        with torch.device("meta"):
            return parameters(Net(CONTESTANTS[name], width))

    target = weigh(YARDSTICK, WIDTH)
    return min(range(WIDTH, 3 * WIDTH), key=lambda w: abs(weigh(contestant, w) - target))
