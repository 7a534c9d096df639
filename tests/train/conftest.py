"""A detector and a data set that keep the contract of the real ones and take a millisecond a picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.nn import DeformConv2d


class TinyDetector(nn.Module):
    """One box for each cell of 8×8 pixels; every loss is a mean over pictures."""

    def __init__(self, classes: int = 2, *, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.backbone = nn.ModuleDict()
        self.backbone["layer1"] = nn.Sequential(nn.Conv2d(3, 8, 3, 4, padding=1), nn.ReLU())
        self.backbone["layer2"] = nn.Sequential(DeformConv2d(8, 16, 3, 2, padding=1, version=2), nn.ReLU())
        self.head = nn.Conv2d(16, classes + 1 + 4, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        maps = self.head(self.backbone["layer2"](self.backbone["layer1"](torch.stack(images) - 0.5)))
        if not self.training:
            return [self._found(m, *i.shape[-2:]) for m, i in zip(maps, images, strict=True)]
        parts = [self._losses(m, t) for m, t in zip(maps, targets, strict=True)]
        return {name: torch.stack([p[name] for p in parts]).mean() for name in ("loss_class", "loss_box")}

    def _losses(self, m: Tensor, target: dict[str, Any]) -> dict[str, Tensor]:
        H, W = m.shape[-2:]
        wanted = torch.full((H, W), m.shape[0] - 5)
        box = m[-4:].sum() * 0
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            i, j = min(H - 1, int((y1 + y2) / 16)), min(W - 1, int((x1 + x2) / 16))
            wanted[i, j] = label
            box = box + F.l1_loss(m[-4:, i, j], torch.tensor([x1, y1, x2, y2]) / 8 - torch.tensor([j, i, j, i]))
        logits = m[:-4] + self.noise * torch.randn(1)
        keep = torch.rand(H, W) >= self.noise
        losses = F.cross_entropy(logits[None], wanted[None], reduction="none")[0]
        return {"loss_class": (losses * keep).mean() * 10, "loss_box": 0.1 * box}

    def _found(self, m: Tensor, H: int, W: int) -> dict[str, Tensor]:
        scores, labels = m[:-4].softmax(0)[:-1].flatten(1).max(0)
        y, x = torch.meshgrid(torch.arange(m.shape[1]), torch.arange(m.shape[2]), indexing="ij")
        boxes = ((m[-4:] + torch.stack([x, y, x, y])) * 8).flatten(1).T
        keep = (scores > 0.05) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        order = scores[keep].argsort(descending=True)
        return {"boxes": boxes[keep][order], "scores": scores[keep][order], "labels": labels[keep][order]}


class TinyScenes:
    """A bright square on noise, red or green, whose box is to be found; one picture in eight is empty."""

    classes = ("red", "green")
    category_ids = (3, 7)

    def __init__(self, count: int = 16, seed: int = 0, broken: tuple[int, ...] = ()) -> None:
        self.count, self.seed, self.broken = count, seed, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        if index in self.broken:
            raise OSError(f"cannot read picture {index}.jpg")
        random = torch.Generator().manual_seed(self.seed * 1000 + index)
        image = torch.randint(0, 90, (3, 32, 40), generator=random, dtype=torch.uint8)
        x, y, side, label = (int(torch.randint(0, most, (1,), generator=random)) for most in (25, 17, 5, 2))
        side += 10
        there = index % 8 != 7
        if there:
            image[label, y : y + side, x : x + side] = 250
        boxes = torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)[: int(there)]
        labels = torch.tensor([label])[: int(there)]
        return image, {"boxes": boxes, "labels": labels, "ignore": labels < 0, "image_id": 100 + index}

    def coco(self) -> dict[str, Any]:
        images = [{"id": 100 + i, "width": 40, "height": 32} for i in range(self.count)]
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        annotations = []
        for i in set(range(self.count)) - set(self.broken):
            target = self[i][1]
            for (x1, y1, x2, y2), c in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                line = {"image_id": 100 + i, "category_id": self.category_ids[c], "bbox": [x1, y1, x2 - x1, y2 - y1]}
                annotations.append({"id": len(annotations), **line})
        return {"images": images, "annotations": annotations, "categories": categories}


class Oracle(nn.Module):
    """Find what `scenes` says: the brightest rectangle, in the pixels of the picture it is given."""

    def forward(self, images: list[Tensor], targets: object) -> list[dict[str, Tensor]]:
        assert not self.training
        assert targets is None
        return [self.one(image) for image in images]

    def one(self, image: Tensor) -> dict[str, Tensor]:
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        label = int(image.amax((1, 2)).argmax())
        at = (image[label] > 0.9).nonzero()
        if not len(at):
            return {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
        (y1, x1), (y2, x2) = at.amin(0).tolist(), at.amax(0).tolist()
        box = torch.tensor([[x1, y1, x2 + 1, y2 + 1]], dtype=torch.float32)
        return {"boxes": box, "scores": torch.ones(1), "labels": torch.tensor([label])}


@pytest.fixture(autouse=True)
def _few_threads(few_threads: None) -> None:
    """Every test of this folder computes on maps of a few cells."""


@pytest.fixture
def detector() -> type[TinyDetector]:
    return TinyDetector


@pytest.fixture
def scenes() -> type[TinyScenes]:
    return TinyScenes


@pytest.fixture
def oracle() -> type[Oracle]:
    return Oracle
