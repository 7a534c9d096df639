"""Pretraining in place of ImageNet: the backbone first learns to classify objects cut out of the training scenes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from pliant.models import ResNet
from pliant.models.detector import IMAGENET_MEAN, IMAGENET_STD
from pliant.ops import roi_align
from pliant.studies.detection.protocol import NETWORK, Images, Kept, shown
from pliant.train import Recipe, fit, save

RECIPE = Recipe(epochs=4, batch=32, lr=3e-3)
SIDE = 32  # of a patch in pixels
REACH = (0.9, 1.6)  # side of a patch relative to the longer one of its object
SHIFT = 0.1  # largest distance between the centres, relative to the side of a patch


class Classifier(nn.Module):
    """The study's regular backbone, the average over its last map, a linear classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = ResNet(NETWORK.depth, width=NETWORK.width, stem=NETWORK.stem)
        self.fc = nn.Linear(self.backbone.channels[-1], classes)

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.backbone(input)[-1].mean((2, 3)))
        return logits


def pretrained(data: Images, seed: int, folder: Path) -> Path:
    """Return the file of a seed's backbone; train it on the objects of its composed scenes when there is none yet.

    The same seed gives the same weights in every process.

    Args:
        data: of the study.
        seed: of scenes, weights and patches.
        folder: of the weights.
    """
    path = folder / f"backbone-{seed}.pt"
    if not path.exists():
        scenes = data.scenes(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net = Classifier(len(scenes.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        count = sum(len(target["labels"]) for _, target in scenes)
        random = torch.Generator().manual_seed(seed)
        fit(net, lambda _: patches(scenes, random), count // RECIPE.batch, RECIPE)
        save(net.backbone, path)
    return path


def patches(scenes: Kept, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Return every object once, in random order: patches (batch, 3, SIDE, SIDE), normalised, and their labels."""
    objects = [(i, k) for i, (_, target) in enumerate(scenes) for k in range(len(target["labels"]))]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    order = torch.randperm(len(objects), generator=random).tolist()
    for start in range(0, len(order) - RECIPE.batch + 1, RECIPE.batch):
        chosen = [objects[o] for o in order[start : start + RECIPE.batch]]
        images = torch.stack([(shown(scenes[i][0]) - mean) / std for i, _ in chosen])
        boxes = torch.stack([scenes[i][1]["boxes"][k] for i, k in chosen])
        labels = torch.stack([scenes[i][1]["labels"][k] for i, k in chosen])
        sides = boxes[:, 2:] - boxes[:, :2]
        reach, shift = torch.rand(len(boxes), 1, generator=random), torch.rand(len(boxes), 2, generator=random)
        side = sides.amax(1, True) * (REACH[0] + (REACH[1] - REACH[0]) * reach)
        middle = boxes[:, :2] + sides / 2 + side * SHIFT * (2 * shift - 1)
        rois = torch.cat((torch.arange(len(boxes))[:, None], middle - side / 2, middle + side / 2), 1)
        cut = roi_align(images.contiguous(memory_format=torch.channels_last), rois, SIDE, 1.0, 2, True)
        yield cut, labels
