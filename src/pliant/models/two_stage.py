"""What detectors of two stages share: proposals sampled, classified and moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.models import boxes
from pliant.models.boxes import Truth
from pliant.models.detector import Detector, Target
from pliant.models.resnet import ResNet
from pliant.models.rpn import RPN, ranked
from pliant.ops import batched_nms


@dataclass(eq=False)
class HeadSettings:
    """How the head is trained, and which of its boxes become detections.

    Args:
        rois: proposals per image that the head's losses see.
        positive_share: largest share of positives among them.
        positive_iou: IoU with a true box from which a proposal is positive; below it is negative.
        hard: None, or the number of proposals per image that count, those of largest loss (hard example mining);
            then the head sees all proposals, and `rois` and `positive_share` do not matter.
        box_std: scale of the head's deltas.
        score_threshold: boxes with a lower score are dropped.
        nms_threshold: IoU with a better detection of the same class above which a box is dropped.
        max_detections: most detections per image.
        smallest: boxes are dropped unless both sides are longer, in pixels.
        limit_shrinking: no side of a proposal or a box shrinks by a factor of more than 1000/16, as none grows by more.
    """

    rois: int
    positive_share: float
    positive_iou: float
    hard: int | None
    box_std: Sequence[float]
    score_threshold: float
    nms_threshold: float
    max_detections: int
    smallest: float = 0.0
    limit_shrinking: bool = False

    def check(self, name: str) -> None:
        """Raise ValueError in the name of a detector if a setting is out of its range."""
        for what in ("positive_share", "positive_iou", "nms_threshold"):
            if not 0 <= getattr(self, what) <= 1:
                raise ValueError(f"{name}: {what} must be from 0 to 1, got {getattr(self, what)}")
        if len(self.box_std) != 4 or min(self.box_std) <= 0:
            raise ValueError(f"{name}: box_std must be four positive numbers, got {tuple(self.box_std)}")
        for what in ("rois", "hard", "max_detections"):
            number = getattr(self, what)
            if number is not None and number < 1:
                raise ValueError(f"{name}: {what} must be at least 1, got {number}")


class TwoStage(Detector, HeadSettings):
    """A backbone, proposals, and a head that classifies and moves them; the subclass has the head.

    For calls and results see :class:`pliant.models.detector.Detector`. Nothing is proposed in the padding of a batch.
    Losses that have nothing to look at, for lack of true boxes or of proposals, are 0.

    The settings of the head are attributes, and may be changed later.

    Args:
        backbone: a ResNet.
        classes: C, of the foreground; labels are 0 to C − 1, and C means background inside.
        head: see :class:`HeadSettings`.
        mean: of images, per channel.
        std: of images, per channel.
    """

    rpn: RPN

    def __init__(
        self, backbone: ResNet, classes: int, head: HeadSettings, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(backbone, classes, mean, std)
        head.check(type(self).__name__)
        vars(self).update(vars(head), box_std=tuple(head.box_std))

    def maps(self, images: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return, for normalised images (N, channels, H, W), the maps of the proposals and the maps of the head."""
        raise NotImplementedError

    def head(self, maps: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (R, C + 1), deltas (R, C or 1, 4) and features (R, …) of RoIs (R, 5)."""
        raise NotImplementedError

    def more_losses(self, images: Tensor, rois: Tensor, labels: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Return further losses of training."""
        return {}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        padded, sizes = self.batch(images)
        truth = self.truth(targets, len(sizes)) if self.training else None
        proposal_maps, head_maps = self.maps(padded)
        proposals, present, losses = self.rpn(proposal_maps, sizes, truth)
        if truth is None:
            rois = listed(proposals, present)
            logits, deltas, _ = self.head(head_maps, rois)
            return self.detections(rois, boxes.wide(logits), boxes.wide(deltas), sizes)
        rois, labels, goals = self.sample(proposals, present, truth)
        logits, deltas, features = self.head(head_maps, rois)
        losses |= self.losses(rois, labels, goals, boxes.wide(logits), boxes.wide(deltas), len(sizes))
        return {**losses, **self.more_losses(padded, rois, labels, features)}

    def sample(self, proposals: Tensor, present: Tensor, truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
        """Return the RoIs (R, 5) to train on, their labels (R,) and the true box that each is to be moved to (R, 4).

        Besides the proposals, the true boxes themselves are candidates.
        """
        candidates = torch.cat([proposals, truth.boxes], 1)
        present = torch.cat([present, truth.present], 1)
        index, positive, negative = boxes.match(candidates, truth, self.positive_iou, self.positive_iou)
        positive, negative = positive & present, negative & present
        if self.hard is None:
            picked, drawn = boxes.sample(positive, negative, self.rois, self.positive_share)
            candidates, index, positive = (boxes.take(x, picked) for x in (candidates, index, positive))
        else:
            drawn = positive | negative
        labels = torch.where(positive, boxes.take(truth.labels, index), self.classes)
        goals = boxes.take(truth.boxes, index)
        return listed(candidates, drawn), labels[drawn], goals[drawn]

    def losses(
        self, rois: Tensor, labels: Tensor, goals: Tensor, logits: Tensor, deltas: Tensor, N: int
    ) -> dict[str, Tensor]:
        """Return cross-entropy and, of positives, smooth L1: means over the RoIs of each image, then over images."""
        image = rois[:, 0].long()
        positive = (labels < self.classes).nonzero()[:, 0]
        column = labels[positive] if deltas.shape[1] > 1 else torch.zeros_like(positive)
        goal = boxes.encode(goals[positive], rois[positive, 1:], self.box_std)
        apart = F.smooth_l1_loss(deltas[positive, column], goal, reduction="none").sum(1)
        box = logits.new_zeros(len(labels)).index_put((positive,), apart)
        entropy = F.cross_entropy(logits, labels, reduction="none")
        if self.hard is not None:
            order = (entropy + box).detach().argsort(descending=True)
            image, order, rank = ranked(image[order], order, N)
            image, order = image[rank < self.hard], order[rank < self.hard]
            entropy, box = entropy[order], box[order]
        return {"classification": boxes.mean(entropy, image, N), "box": boxes.mean(box, image, N)}

    def moved(self, deltas: Tensor, rois: Tensor, sizes: Tensor) -> Tensor:
        """Return boxes (…, 4) moved by the head's `deltas` (…, 4) and clipped to images of `sizes` (…, 2)."""
        return boxes.clip(boxes.decode(deltas, rois, self.box_std, limit_shrinking=self.limit_shrinking), sizes)

    def detections(self, rois: Tensor, logits: Tensor, deltas: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Return the detections of each image, best first."""
        N = len(sizes)
        probability = logits.softmax(1)[:, : self.classes]
        row, label = (probability > self.score_threshold).nonzero(as_tuple=True)
        scores, image = probability[row, label], rois[row, 0].long()
        column = label if deltas.shape[1] > 1 else torch.zeros_like(label)
        found = self.moved(deltas[row, column], rois[row, 1:], sizes[image])
        # False for NaN and, by default, for boxes outside of the image.
        good = ((found[:, 2:] - found[:, :2]) > self.smallest).all(1).nonzero()[:, 0]
        found, scores, image, label = found[good], scores[good], image[good], label[good]
        order = batched_nms(found, scores, image * self.classes + label, self.nms_threshold)
        image, order, rank = ranked(image[order], order, N)
        best = rank < self.max_detections
        image, order = image[best], order[best]
        parts = order.split(torch.bincount(image, minlength=N).tolist())
        return [{"boxes": found[part], "scores": scores[part], "labels": label[part]} for part in parts]


def listed(candidates: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen (N, P) of boxes (N, P, 4) as RoIs (R, 5), ordered by image, whose index comes first."""
    image, column = chosen.nonzero(as_tuple=True)
    found = candidates[image, column]
    return torch.cat([image.unsqueeze(1).to(found.dtype), found], 1)
