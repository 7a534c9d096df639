"""The hand-made detector: histograms of oriented gradients, linear support vector machines, a sliding window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.ops import batched_nms

CELL = 4  # side of a cell in pixels of the scaled image
AREA = 40  # cells per window, approximately
SHAPES = 5  # window shapes of different aspect
OCTAVE = 2  # window sizes per octave
BORDER = 2  # cells around the image, so that windows may reach over its edge
ORIENTATIONS = 9
BLOCK = 2  # cells per side of a block, which are normalised together
DEPTH = ORIENTATIONS * BLOCK**2

POSITIVE, NEGATIVE = 0.6, 0.3  # a window is an object from this overlap with its box, background below that
POSITIVES = 6  # training windows per object, at most: those of the largest overlap
NEGATIVES = 25_000  # training windows of the background, an equal share from every image
C = 0.02  # of the support vector machines
RIDGE = 300.0  # of the regression of boxes
MARGIN = -0.9  # detections with a lower one are dropped
CANDIDATES = 1000  # best windows and classes per image, before suppression
DETECTIONS = 100  # per image, at most
SCENES = 1000  # training images, at most: linear machines gain nothing from more
OVERLAP = 0.3  # of two detections of a class, above which the one of the lower score is dropped


class Window(NamedTuple):
    """The shape of a sliding window in cells."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Return the length of its feature: blocks overlap by all but one cell."""
        return (self.rows - BLOCK + 1) * (self.columns - BLOCK + 1) * DEPTH


@dataclass
class Windows:
    """All windows of an image: blocks of every level, and the boxes (n, 4) of window shape s at level l as [l][s]."""

    blocks: list[Tensor]
    boxes: list[list[Tensor]]


@dataclass
class _Examples:
    """What one window shape learns from: features, labels (the number of classes: background), boxes to regress to."""

    features: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)


def histograms(image: np.ndarray) -> Tensor:
    """Return HOG blocks (DEPTH, rows, columns) of an image (H, W, 3): L2-Hys over 2×2 cells, one cell apart.

    scikit-image computes gradients and cells. Its blocks are normalised one by one in Python, which takes ten times as
    long as everything else; here they are normalised together.

    Source: Dalal and Triggs, CVPR 2005.
    """
    from skimage.feature import hog

    H, W = (side // CELL for side in image.shape[:2])
    # One block as large as the image: its normalisation multiplies all cells by the same number.
    cells = hog(
        image, ORIENTATIONS, (CELL, CELL), (H, W), block_norm="L1", feature_vector=False, channel_axis=-1
    ).reshape(H, W, ORIENTATIONS)
    parts = [cells[i : H - BLOCK + 1 + i, j : W - BLOCK + 1 + j] * (H * W) for i in range(BLOCK) for j in range(BLOCK)]
    blocks = torch.from_numpy(np.concatenate(parts, -1)).permute(2, 0, 1).float()
    blocks = (blocks / (blocks.square().sum(0) + 1e-10).sqrt()).clamp(max=0.2)
    return blocks / (blocks.square().sum(0) + 1e-10).sqrt()


class HogMachine:
    """Detect objects by linear support vector machines on histograms of oriented gradients.

    Windows of `SHAPES` aspects slide over a pyramid of the image, one cell at a time. For every shape there is one
    machine for each class against all others and the background, and one linear regression from a window's feature to
    the box of its object. Shapes and sizes follow the boxes of the training images. Background is learned in rounds:
    at first windows at random, then those that the machines of the previous round take for objects (hard negatives).

    Args:
        classes: number of classes.
        seed: of random windows and of the support vector machines.
    """

    def __init__(self, classes: int, seed: int) -> None:
        self.classes = classes
        self.seed = seed
        self.windows: list[Window] = []
        self.factors: list[float] = []
        self.machines: list[tuple[Tensor, Tensor]] = []  # per shape: weights (classes, size), biases (classes,)
        self.regressions: list[tuple[Tensor, Tensor]] = []  # per shape: weights (4, size), biases (4,)

    def fit(
        self,
        dataset: Any,
        rounds: int = 3,
        tell: Callable[[int, int], None] = lambda round, rounds: None,
    ) -> HogMachine:
        """Train on a detection data set, on a part of its images in each round; return self.

        Raises:
            ValueError: there is no object.
        """
        random = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(dataset), generator=random)[:SCENES].tolist()
        targets = [dataset[i][1] for i in order]
        self._shape([target["boxes"][~target["ignore"]] for target in targets])
        negatives = NEGATIVES // len(order)
        examples = [_Examples() for _ in self.windows]
        for round in range(rounds):
            for index in order[round::rounds]:
                image, target = dataset[index]
                self._gather(examples, self.slide(image), target, negatives, random)
            self._learn(examples)
            tell(round + 1, rounds)
        return self

    def detect(self, image: Tensor) -> dict[str, Tensor]:
        """Return ``boxes``, ``scores`` (margins) and ``labels`` of the objects in an image, sorted by score."""
        found = self.slide(image)
        places = [(level, s) for level, of in enumerate(found.boxes) for s in range(len(of))]
        margins = [self._margins(found.blocks[level], s) for level, s in places]
        counts = torch.tensor([len(of) for of in margins])
        # All classes share the box of a window.
        every = torch.cat(margins)
        score, index = every.flatten().topk(min(CANDIDATES, every.numel()))
        score, index = score[score > MARGIN], index[score > MARGIN]
        window, label = index // self.classes, index % self.classes
        last = counts.cumsum(0)
        place = torch.searchsorted(last, window, right=True)
        box = torch.empty(len(window), 4)
        for p in place.unique().tolist():
            level, s = places[p]
            here = (place == p).nonzero()[:, 0]
            row = window[here] - (last[p] - counts[p])
            weight, bias = self.regressions[s]
            deltas = self._features(found.blocks[level], s, row) @ weight.T + bias
            box[here] = _moved(found.boxes[level][s][row], deltas)
        H, W = image.shape[-2:]
        box = box.clamp(min=0).minimum(torch.tensor([W, H, W, H]))
        kept = batched_nms(box, score, label, OVERLAP)[:DETECTIONS]
        return {"boxes": box[kept], "scores": score[kept], "labels": label[kept]}

    def state(self) -> dict[str, Any]:
        """Return all that detection needs, tensors and plain values."""
        return {
            "classes": self.classes,
            "seed": self.seed,
            "windows": [tuple(window) for window in self.windows],
            "factors": self.factors,
            "machines": self.machines,
            "regressions": self.regressions,
        }

    @classmethod
    def load(cls, state: dict[str, Any]) -> HogMachine:
        """Return a machine from its :meth:`state`."""
        machine = cls(state["classes"], state["seed"])
        machine.windows = [Window(*sides) for sides in state["windows"]]
        machine.factors, machine.machines = state["factors"], state["machines"]
        machine.regressions = state["regressions"]
        return machine

    @property
    def parameters(self) -> int:
        """Return the number of learned values."""
        return sum(t.numel() for pair in (*self.machines, *self.regressions) for t in pair)

    def slide(self, image: Tensor) -> Windows:
        """Return all windows of an image (3, H, W), uint8."""
        H, W = image.shape[-2:]
        batch = image[None].float() / 255
        found = Windows([], [])
        for factor in self.factors:
            size = [max(CELL, round(side * factor)) for side in (H, W)]
            scaled = F.interpolate(batch, size, mode="bilinear", antialias=True)
            # Padded to whole cells and by a border, with copies of the edge pixels.
            right, below = (-side % CELL + BORDER * CELL for side in (size[1], size[0]))
            padded = F.pad(scaled, (BORDER * CELL, right, BORDER * CELL, below), mode="replicate")
            blocks = histograms(padded[0].permute(1, 2, 0).numpy())
            cell = torch.tensor([W / size[1], H / size[0]]) * CELL
            found.blocks.append(blocks)
            found.boxes.append([_places(blocks, window, cell) for window in self.windows])
        return found

    def _shape(self, boxes: Sequence[Tensor]) -> None:
        """Choose window shapes and the scales of the pyramid by the boxes of the training images."""
        sides = torch.cat(list(boxes))[:, 2:] - torch.cat(list(boxes))[:, :2]
        if not len(sides):
            raise ValueError("hog: no training image has an object")
        aspect = (sides[:, 0] / sides[:, 1]).log()
        ranks = (torch.arange(SHAPES) + 0.5) / SHAPES
        self.windows = []
        for wide in aspect.quantile(ranks).exp().tolist():
            rows, columns = (max(BLOCK, round((AREA * share) ** 0.5)) for share in (1 / wide, wide))
            if Window(rows, columns) not in self.windows:
                self.windows.append(Window(rows, columns))
        least, most = sides.prod(1).sqrt().quantile(torch.tensor([0.02, 0.98])).tolist()
        side = CELL * AREA**0.5
        levels = max(1, round(OCTAVE * np.log2(most / least)) + 1)
        self.factors = [side / least * (least / most) ** (i / max(1, levels - 1)) for i in range(levels)]

    def _gather(
        self,
        examples: list[_Examples],
        found: Windows,
        target: dict[str, Any],
        negatives: int,
        random: torch.Generator,
    ) -> None:
        """Add an image's objects, and background windows: random ones, or those that the machines take for objects."""
        boxes, labels, ignore = target["boxes"], target["labels"], target["ignore"]
        places = [(level, s) for level, of in enumerate(found.boxes) for s in range(len(of))]
        every = torch.cat([found.boxes[level][s] for level, s in places])
        counts = [len(found.boxes[level][s]) for level, s in places]
        overlap = _overlap(every, boxes)
        best, which = overlap.max(1) if len(boxes) else (torch.zeros(len(every)), torch.zeros(len(every)).long())

        chosen = []
        for k in range(len(boxes)):
            if not ignore[k]:
                mine = torch.where(which == k, overlap[:, k], 0)
                value, index = mine.topk(min(POSITIVES, len(mine)))
                chosen.append(index[value >= POSITIVE])
        hardness = torch.rand(len(every), generator=random)
        if self.machines:
            # Background beyond its margin teaches a support vector machine nothing.
            margins = [self._margins(found.blocks[level], s).max(1).values for level, s in places]
            hardness = (torch.cat(margins) + 1).clamp(min=0)
        value, index = torch.where(best < NEGATIVE, hardness, 0).topk(min(negatives, len(every)))
        objects = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64)
        rows = torch.cat([objects, index[value > 0]])
        label = torch.full((len(rows),), self.classes)
        delta = torch.full((len(rows), 4), torch.nan)
        if len(objects):
            label[: len(objects)] = labels[which[objects]]
            delta[: len(objects)] = _deltas(every[objects], boxes[which[objects]])
        start = 0
        for (level, s), count in zip(places, counts, strict=True):
            here = ((rows >= start) & (rows < start + count)).nonzero()[:, 0]
            if len(here):
                examples[s].features.append(self._features(found.blocks[level], s, rows[here] - start))
                examples[s].labels.append(label[here])
                examples[s].deltas.append(delta[here])
            start += count

    def _learn(self, examples: list[_Examples]) -> None:
        from sklearn.linear_model import Ridge
        from sklearn.svm import LinearSVC

        self.machines, self.regressions = [], []
        for window, of in zip(self.windows, examples, strict=True):
            # A shape never detects a class that it has no examples of.
            weights, biases = torch.zeros(self.classes, window.size), torch.full((self.classes,), -np.inf)
            regression = torch.zeros(4, window.size), torch.zeros(4)
            labels = torch.cat(of.labels) if of.labels else torch.zeros(0)
            if len(labels.unique()) > 1:
                features = torch.cat(of.features)
                for c in sorted(set(labels.tolist()) - {self.classes}):
                    machine = LinearSVC(C=C, random_state=self.seed, max_iter=20_000)
                    machine.fit(features.numpy(), (labels == c).numpy())
                    weights[c] = torch.from_numpy(machine.coef_[0]).float()
                    biases[c] = float(machine.intercept_[0])
                objects = labels < self.classes
                ridge = Ridge(RIDGE).fit(features[objects].numpy(), torch.cat(of.deltas)[objects].numpy())
                regression = torch.from_numpy(ridge.coef_).float(), torch.from_numpy(ridge.intercept_).float()
            self.machines.append((weights, biases))
            self.regressions.append(regression)

    def _margins(self, blocks: Tensor, shape: int) -> Tensor:
        """Return the margin (n, classes) of every window of a shape at one level."""
        rows, columns = (side - BLOCK + 1 for side in self.windows[shape])
        weight, bias = self.machines[shape]
        if blocks.shape[1] < rows or blocks.shape[2] < columns:
            return torch.zeros(0, self.classes)
        return F.conv2d(blocks[None], weight.view(-1, DEPTH, rows, columns), bias)[0].flatten(1).T

    def _features(self, blocks: Tensor, shape: int, index: Tensor) -> Tensor:
        """Return the features (n, size) of some windows of a shape at one level."""
        rows, columns = (side - BLOCK + 1 for side in self.windows[shape])
        places = blocks.unfold(1, rows, 1).unfold(2, columns, 1)  # (DEPTH, down, across, rows, columns)
        across = places.shape[2]
        return places[:, index // across, index % across].transpose(0, 1).flatten(1)


def _places(blocks: Tensor, window: Window, cell: Tensor) -> Tensor:
    """Return the boxes of all windows of a shape, row by row; `cell` (x, y) is the size of a cell in image pixels."""
    down, across = (max(0, n - (side - BLOCK)) for n, side in zip(blocks.shape[1:], window, strict=True))
    y, x = torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")
    corner = torch.stack((x, y), -1).view(-1, 2).float() - BORDER
    size = torch.tensor([window.columns, window.rows])
    return torch.cat((corner * cell, (corner + size) * cell), 1)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return intersection over union (n, m)."""
    sides = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0)
    both = sides.prod(2)
    areas = [(t[:, 2:] - t[:, :2]).prod(1) for t in (a, b)]
    return both / (areas[0][:, None] + areas[1] - both)


def _deltas(windows: Tensor, boxes: Tensor) -> Tensor:
    """Return how boxes lie in windows: distance of the centres in sides of the window, log of the ratio of sides."""
    sides, wanted = windows[:, 2:] - windows[:, :2], boxes[:, 2:] - boxes[:, :2]
    return torch.cat((((boxes - windows)[:, :2] + (wanted - sides) / 2) / sides, (wanted / sides).log()), 1)


def _moved(windows: Tensor, deltas: Tensor) -> Tensor:
    """Return the boxes that lie in windows as `deltas` say."""
    sides = windows[:, 2:] - windows[:, :2]
    middle = windows[:, :2] + sides / 2 + deltas[:, :2] * sides
    half = sides * deltas[:, 2:].clamp(-1, 1).exp() / 2
    return torch.cat((middle - half, middle + half), 1)
