"""Deformable DETR: queries that look at a few points of a pyramid, and become boxes without suppression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models import boxes
from pliant.models.boxes import Truth
from pliant.models.detector import IMAGENET_MEAN, IMAGENET_STD, Detector, Target
from pliant.models.resnet import ResNet
from pliant.models.set_loss import set_loss
from pliant.nn import MSDeformAttn

PRIOR = 0.01  # probability of every class before training
CLAMP = 1e-5  # distance of a reference from 0 and 1, at least
POINT = -2.0  # logit of the sides that the box of a point starts with
LOSSES = ("classification", "box", "giou")
ANCHOR = 4.0  # side of the box that a cell of the encoder starts from, in cells


class Levels(NamedTuple):
    """The pyramid of a batch as the transformer reads it: S pixels of all levels, one after another."""

    value: Tensor  # (N, S, C)
    position: Tensor  # (N, S, C), what is added to queries
    shapes: tuple[tuple[int, int], ...]
    padding: Tensor | None  # (N, S), True outside of the image; None: no image is padded
    ratios: Tensor  # (N, L, 2), width and height of the image relative to each level
    centres: Tensor  # (N, S, 2), of the pixels, relative to the image, x first
    sides: Tensor  # (N, S, 2), of the pixels, relative to the image

    def seen_from(self, reference: Tensor) -> Tensor:
        """Return points (N, Q, 2) or boxes (N, Q, 4) of the image as points or boxes of every level (N, Q, L, …)."""
        return reference.unsqueeze(2) * self.ratios.repeat(1, 1, reference.shape[2] // 2).unsqueeze(1)


class Feed(nn.Module):
    """Two linear layers with a ReLU between, added to the input, and a normalization."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm, self.dropout = nn.LayerNorm(channels), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(F.relu(self.linear1(x)))
        result: Tensor = self.norm(x + self.dropout(self.linear2(inner)))
        return result


class EncoderLayer(nn.Module):
    """Every pixel of the pyramid looks at a few points of all levels around itself."""

    def __init__(self, channels: int, levels: int, heads: int, points: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = MSDeformAttn(channels, levels, heads, points)
        self.norm, self.dropout = nn.LayerNorm(channels), nn.Dropout(dropout)
        self.feed = Feed(channels, hidden, dropout)

    def forward(self, x: Tensor, levels: Levels, reference: Tensor) -> Tensor:
        seen = self.attention(x + levels.position, reference, x, levels.shapes, None, levels.padding)
        result: Tensor = self.feed(self.norm(x + self.dropout(seen)))
        return result


class DecoderLayer(nn.Module):
    """Queries of a group look at each other, then each of them at the pyramid around its reference."""

    def __init__(self, channels: int, levels: int, heads: int, points: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.norm1, self.dropout = nn.LayerNorm(channels), nn.Dropout(dropout)
        self.attention = MSDeformAttn(channels, levels, heads, points)
        self.norm2 = nn.LayerNorm(channels)
        self.feed = Feed(channels, hidden, dropout)

    def forward(self, x: Tensor, position: Tensor, memory: Tensor, levels: Levels, reference: Tensor, G: int) -> Tensor:
        grouped = x.unflatten(1, (G, -1)).flatten(0, 1)
        asking = grouped + position.unflatten(1, (G, -1)).flatten(0, 1)
        said, _ = self.among(asking, asking, grouped, need_weights=False)
        x = self.norm1(x + self.dropout(said).reshape(x.shape))
        seen = self.attention(x + position, reference, memory, levels.shapes, None, levels.padding)
        result: Tensor = self.feed(self.norm2(x + self.dropout(seen)))
        return result


class Prediction(nn.Module):
    """What becomes of queries: logits of the classes, and a box, moved and resized from the reference."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier, self.regressor = nn.Linear(channels, classes), mlp(channels, channels, channels, 4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let all classes be improbable, and boxes stay where they are."""
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.constant_(self.classifier.bias, -math.log((1 - PRIOR) / PRIOR))
        last = self.regressor[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, Q, C) and boxes (N, Q, 4) of queries (N, Q, channels) with points or boxes of reference."""
        start = boxes.wide(reference).clamp(CLAMP, 1 - CLAMP).logit()
        start = F.pad(start, (0, 4 - start.shape[2]), value=POINT)
        return boxes.wide(self.classifier(x)), (start + boxes.wide(self.regressor(x))).sigmoid()


class Queries(NamedTuple):
    """What the decoder starts from: G groups of K queries, one after another."""

    content: Tensor  # (N, G·K, C)
    position: Tensor | None  # (N, G·K, C); None: that of the boxes of reference
    reference: Tensor  # (N, G·K, 2 or 4), points or boxes
    groups: int


class DeformableDETR(Detector):
    """Detect objects by queries, each of which becomes one box or none: no anchors to tune, no suppression.

    A convolution brings the maps of a backbone to the same width. In the encoder every pixel of this pyramid looks at a
    few points of all levels. In the decoder queries look at each other and at the pyramid around their boxes, and each
    layer moves the boxes (iterative refinement). With `two_stage` the encoder's pixels propose boxes, and the best of
    them become the queries; without it queries and their points of reference are learned.

    Predictions and true boxes are matched one to one at the least total cost (the Hungarian method, from SciPy). Every
    layer has a focal loss, an L1 loss and a loss of generalised IoU, with the costs' weights. For calls and results see
    :class:`pliant.models.detector.Detector`.

    Args:
        backbone: a ResNet.
        classes: C.
        levels: the backbone's maps, 0 to 3, from which the pyramid is made.
        extra: coarser levels that strided convolutions add.
        channels: of the transformer; a multiple of 4 and of `heads`.
        heads: of every attention.
        points: samples of a head on each level.
        encoder_layers: number of layers.
        decoder_layers: number of layers.
        hidden: width of the layers' inner linear layer.
        queries: K, boxes per image.
        groups: in training, G groups of K queries that do not see each other. Each learns to find all objects, so that
            G times as many queries learn from every image; in evaluation the first group answers.
        two_stage: queries from proposals of the encoder.
        dropout: share of values that training drops in every layer.
        weights: of classification, L1 and generalised IoU, in losses and costs.
        score_threshold: boxes with a lower score are dropped.
        max_detections: most detections per image.
        mean: of images, per channel.
        std: of images, per channel.

    Raises:
        TypeError: the backbone is not a ResNet; images are not floating-point.
        ValueError: settings, images or targets that do not fit.
        ImportError: in training, SciPy is missing.

    Source: Zhu et al., "Deformable DETR", ICLR 2021; groups of queries: Chen et al., "Group DETR", ICCV 2023.

    >>> _ = torch.manual_seed(0)
    >>> net = DeformableDETR(ResNet(18, width=8, stem="small"), 3, channels=32, encoder_layers=1, decoder_layers=2,
    ...                      hidden=64, queries=20)
    >>> image = torch.rand(3, 64, 64)
    >>> losses = net([image], [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}])
    >>> sorted(losses)
    ['box', 'classification', 'giou', 'proposal_box', 'proposal_classification', 'proposal_giou']
    >>> sorted(net.eval()([image])[0])
    ['boxes', 'labels', 'scores']
    """

    def __init__(
        self,
        backbone: ResNet,
        classes: int,
        *,
        levels: Sequence[int] = (1, 2, 3),
        extra: int = 1,
        channels: int = 256,
        heads: int = 8,
        points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        hidden: int = 1024,
        queries: int = 300,
        groups: int = 1,
        two_stage: bool = True,
        dropout: float = 0.1,
        weights: Sequence[float] = (2.0, 5.0, 2.0),
        score_threshold: float = 0.05,
        max_detections: int = 100,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(backbone, classes, mean, std)
        self.levels = tuple(levels)
        if not self.levels or list(self.levels) != sorted(set(self.levels) & {0, 1, 2, 3}):
            raise ValueError(f"DeformableDETR: levels must be some of 0, 1, 2 and 3, in this order, got {self.levels}")
        least = {
            "heads": heads, "points": points, "encoder_layers": encoder_layers, "decoder_layers": decoder_layers,
            "hidden": hidden, "queries": queries, "groups": groups, "max_detections": max_detections,
        }  # fmt: skip
        for what, number in least.items():
            if number < 1:
                raise ValueError(f"DeformableDETR: {what} must be at least 1, got {number}")
        if extra < 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"DeformableDETR: extra must be at least 0, and dropout also less than 1, got {extra} and {dropout}"
            )
        if channels < 4 or channels % 4 or channels % heads:
            raise ValueError(f"DeformableDETR: channels must be a multiple of 4 and of heads={heads}, got {channels}")
        if len(weights) != 3 or min(weights) < 0:
            raise ValueError(f"DeformableDETR: weights must be three numbers of at least 0, got {tuple(weights)}")
        self.channels, self.queries, self.groups, self.weights = channels, queries, groups, tuple(weights)
        self.score_threshold, self.max_detections = score_threshold, max_detections
        last = backbone.strides[self.levels[-1]]
        self.strides = [backbone.strides[i] for i in self.levels] + [last << (i + 1) for i in range(extra)]
        projections = [projection(backbone.channels[i], channels, 1) for i in self.levels]
        for i in range(extra):
            projections.append(projection(channels if i else backbone.channels[self.levels[-1]], channels, 2))
        self.projections = nn.ModuleList(projections)
        self.level_embedding = nn.Parameter(torch.randn(len(projections), channels))
        layer = channels, len(projections), heads, points, hidden, dropout
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(decoder_layers))
        self.predictions = nn.ModuleList(Prediction(channels, classes) for _ in range(decoder_layers))
        self.describe: nn.Module | None = None
        self.propose: nn.Module | None = None
        self.position: nn.Module | None = None
        self.query: nn.Parameter | None = None
        self.reference_points: nn.Linear | None = None
        if two_stage:
            self.describe = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
            self.propose = Prediction(channels, classes)
            self.position = mlp(2 * channels, channels, channels)
        else:
            self.query = nn.Parameter(torch.randn(groups, queries, 2 * channels))
            self.reference_points = nn.Linear(channels, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the transformer's matrices with xavier, its attention and predictions in their own ways."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.startswith(("backbone.", "query", "level_embedding")):
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn | Prediction):
                module.reset_parameters()
        if self.reference_points is not None:
            nn.init.zeros_(self.reference_points.bias)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        padded, sizes = self.batch(images)
        truth = self.truth(targets, len(sizes)) if self.training else None
        levels = self.pyramid(self.backbone(padded), sizes)
        memory, reference = levels.value, levels.seen_from(levels.centres)
        for layer in self.encoder:
            memory = layer(memory, levels, reference)
        proposed, queries = self.chosen(memory, levels)
        predicted = self.decode(memory, levels, queries)
        if truth is None:
            return self.detections(*predicted[-1], sizes)
        truth = truth._replace(boxes=boxes.relative(truth.boxes, sizes.unsqueeze(1)))
        losses = self.losses(predicted, truth, queries.groups)
        if proposed is not None:
            valid = None if levels.padding is None else ~levels.padding
            found = set_loss(*proposed, truth, self.weights, valid=valid, times=queries.groups)
            losses |= {f"proposal_{name}": loss for name, loss in zip(LOSSES, found, strict=True)}
        return losses

    def pyramid(self, maps: Sequence[Tensor], sizes: Tensor) -> Levels:
        """Return the levels of a batch of images of `sizes` (N, 2), width first."""
        found = []
        last = maps[self.levels[-1]]
        for i, layer in enumerate(self.projections):
            found.append(layer(maps[self.levels[i]] if i < len(self.levels) else last))
            last = last if i < len(self.levels) else found[-1]
        centres, sides, ratios = [], [], []
        for x, stride in zip(found, self.strides, strict=True):
            H, W = x.shape[2:]
            row, column = (torch.arange(n, device=x.device, dtype=sizes.dtype) + 0.5 for n in (H, W))
            grid = torch.stack([column.expand(H, W), row[:, None].expand(H, W)], -1).reshape(1, -1, 2)
            centres.append(grid * stride / sizes[:, None])
            sides.append((stride / sizes[:, None]).expand(-1, H * W, -1))
            ratios.append(sizes / sizes.new_tensor([W * stride, H * stride]))
        centre = torch.cat(centres, 1)
        outside = (centre >= 1).any(2)
        embedded = [row.expand(x[0, 0].numel(), -1) for x, row in zip(found, self.level_embedding, strict=True)]
        return Levels(
            torch.cat([x.flatten(2).transpose(1, 2) for x in found], 1),
            sine(centre, self.channels // 2) + torch.cat(embedded),
            tuple((int(x.shape[2]), int(x.shape[3])) for x in found),
            outside if outside.any() else None,
            torch.stack(ratios, 1),
            centre,
            torch.cat(sides, 1),
        )

    def chosen(self, memory: Tensor, levels: Levels) -> tuple[tuple[Tensor, Tensor] | None, Queries]:
        """Return logits and boxes that pixels propose, or None, and the queries: the best of them, or learned ones."""
        answering = self.groups if self.training else 1
        if self.query is not None and self.reference_points is not None:
            position, content = self.query[:answering].flatten(0, 1).expand(len(memory), -1, -1).chunk(2, -1)
            return None, Queries(content, position, boxes.wide(self.reference_points(position)).sigmoid(), answering)
        assert self.describe is not None and self.propose is not None
        x = self.describe(memory)
        logits, found = self.propose(x, torch.cat([levels.centres, ANCHOR * levels.sides], 2))
        score = logits.detach().amax(2)
        if levels.padding is not None:
            score = score.masked_fill(levels.padding, -math.inf)
        # Each object is found by G pixels, which are among the best. Groups take turns, so that every one of them has
        # about one for each object; so has the first group, which answers in evaluation.
        G = min(self.groups, score.shape[1])
        K = min(self.queries, score.shape[1] // G)
        answering = min(answering, G)
        best = score.topk(K * G, 1).indices.unflatten(1, (K, G)).transpose(1, 2)[:, :answering].flatten(1)
        content, reference = boxes.take(x, best).detach(), boxes.take(found, best).detach()
        return (logits, found), Queries(content, None, reference, answering)

    def decode(self, memory: Tensor, levels: Levels, queries: Queries) -> list[tuple[Tensor, Tensor]]:
        """Return logits and boxes of the queries after every layer."""
        predicted = []
        x, position, reference, G = queries
        for layer, predict in zip(self.decoder, self.predictions, strict=True):
            if self.position is not None:
                position = self.position(sine(reference, self.channels // 2))
            x = layer(x, position, memory, levels, levels.seen_from(reference), G)
            predicted.append(predict(x, reference))
            reference = predicted[-1][1].detach()
        return predicted

    def losses(self, predicted: Sequence[tuple[Tensor, Tensor]], truth: Truth, G: int) -> dict[str, Tensor]:
        """Return the losses of the decoder, summed over its layers, where every group is an image of its own."""
        grouped = Truth(*(values.repeat_interleave(G, 0) for values in truth))
        every = []
        for one in predicted:
            logits, found = (x.unflatten(1, (G, -1)).flatten(0, 1) for x in one)
            every.append(set_loss(logits, found, grouped, self.weights))
        return dict(zip(LOSSES, torch.stack(every).sum(0), strict=True))

    def detections(self, logits: Tensor, found: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Return the detections of each image, best first."""
        K, C = logits.shape[1:]
        scores, best = logits.sigmoid().flatten(1).topk(min(self.max_detections, K * C), 1)
        query, labels = best // C, best % C
        pixels = boxes.clip(
            boxes.corners(boxes.take(found, query)) * sizes.repeat(1, 2).unsqueeze(1), sizes.unsqueeze(1)
        )
        results = []
        for box, score, label in zip(pixels, scores, labels, strict=True):
            good = (score > self.score_threshold) & box.isfinite().all(1)
            results.append({"boxes": box[good], "scores": score[good], "labels": label[good]})
        return results


def sine(values: Tensor, channels: int) -> Tensor:
    """Return sines and cosines (…, D·channels) of values (…, D) in 0 to 1, at `channels`/2 frequencies each."""
    steps = torch.arange(channels // 2, device=values.device, dtype=values.dtype)
    angles = values.unsqueeze(-1) * (2 * math.pi * 10000 ** (-2 * steps / channels))
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def projection(inputs: int, channels: int, stride: int) -> nn.Module:
    """Return a convolution to a level of the pyramid, 1×1, or 3×3 with a stride of 2, and a normalization."""
    conv = nn.Conv2d(inputs, channels, 2 * stride - 1, stride, padding=stride - 1)
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(32, channels), channels))


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths, from the input to the output, with ReLUs between them."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] * (i > 0) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)
