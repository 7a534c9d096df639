"""Pictures that a detector of a few thousand weights can learn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pliant.models import FasterRCNN, ResNet
from pliant.models.boxes import iou
from pliant.nn import parameter_groups

Scenes = tuple[list[Tensor], list[dict[str, Tensor]]]


def _scenes(count: int = 2, size: int = 64) -> Scenes:
    random = torch.Generator().manual_seed(3)
    images, targets = [], []
    for i in range(count):
        image = 0.2 * torch.rand(3, size, size, generator=random)
        boxes = torch.tensor([[6.0, 8, 26, 30], [34, 30, 58, 52]]) + 2 * i
        labels = torch.tensor([i % 2, 1 - i % 2])
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            image[label, y1:y2, x1:x2] += 0.7
        images.append(image)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


@pytest.fixture
def scenes() -> Callable[..., Scenes]:
    """Return a function that draws pictures with a red and a green rectangle on noise, and their boxes."""
    return _scenes


@pytest.fixture
def backbone() -> Callable[..., ResNet]:
    """Return a function that makes a ResNet-18 of width 16 with the small stem, always the same."""

    def make(**options: object) -> ResNet:
        torch.manual_seed(0)
        return ResNet(18, width=16, stem="small", **options)

    return make


@pytest.fixture
def detector(backbone: Callable[..., ResNet]) -> Callable[..., FasterRCNN]:
    """Return a function that makes a tiny Faster R-CNN for 64×64 pictures of 2 classes."""

    def make(neck: str = "fpn", **options: object) -> FasterRCNN:
        if neck == "fpn":
            options = {"backbone": backbone(), "levels": (1, 2, 3)} | options
        else:
            options = {"backbone": backbone(stride=16), "anchor_sizes": [[16, 24, 32]]} | options
        small = {
            "channels": 16,
            "hidden": 32,
            "rpn_channels": 16,
            "rpn_samples": 64,
            "pre_nms": (64, 32),
            "post_nms": (32, 16),
            "rois": 16,
            "pooled": 3,
        }
        return FasterRCNN(neck=neck, classes=2, **(small | options))

    return make


@pytest.fixture
def learn(scenes: Callable[..., Scenes]) -> Callable[..., None]:
    """Return a function that trains a detector on two pictures and asserts that it knows them by heart then."""

    def fit(net: torch.nn.Module, lr: float, steps: int) -> None:
        images, targets = scenes()
        optimizer = torch.optim.AdamW(parameter_groups(net, lr))
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        history = []
        for _ in range(steps):
            loss = sum(net(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            history.append(loss.item())
        assert sum(history[-5:]) < 0.3 * sum(history[:5])
        for found, target in zip(net.eval()(images), targets, strict=True):
            # An average precision of 1: the two best detections are the two boxes, with their labels.
            overlap, which = iou(target["boxes"], found["boxes"][:2]).max(1)
            assert (overlap > 0.5).all() and torch.equal(found["labels"][which], target["labels"])

    return fit
