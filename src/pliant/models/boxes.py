"""Boxes in batches: encoding, overlap, matching to true boxes, sampling. Nothing here loops over boxes.

A batch of N images with up to M boxes each is padded: boxes are (N, M, 4), and a mask says which are valid. Overlaps
are (N, M, A), anchors last, so that the long dimension is contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Logarithm of the largest factor by which width and height grow; larger ones would overflow.
LARGEST = math.log(1000 / 16)
SMALLEST = 1e-6
# A box is not a negative if more than this share of it lies in a true box marked `ignore`.
COVERED = 0.5


class Truth(NamedTuple):
    """The true boxes of a batch, padded to the same number, at least one, per image."""

    boxes: Tensor  # (N, M, 4)
    labels: Tensor  # (N, M)
    present: Tensor  # (N, M), objects to detect
    ignored: Tensor  # (N, M), objects that need not be detected; a detection on one is no mistake

    @classmethod
    def pad(cls, targets: Sequence[dict[str, Tensor]], device: torch.device) -> Truth:
        """Return the targets of a batch, padded; boxes without area are ignored."""
        N, M = len(targets), max([1, *(len(target["boxes"]) for target in targets)])
        boxes = torch.zeros(N, M, 4, device=device)
        labels = torch.zeros(N, M, dtype=torch.long, device=device)
        present = torch.zeros(N, M, dtype=torch.bool, device=device)
        ignored = torch.zeros(N, M, dtype=torch.bool, device=device)
        for i, target in enumerate(targets):
            n = len(target["boxes"])
            boxes[i, :n] = target["boxes"]
            labels[i, :n] = target["labels"]
            present[i, :n] = True
            if target.get("ignore") is not None:
                ignored[i, :n] = target["ignore"]
        present &= ((boxes[..., 2:] - boxes[..., :2]) > 0).all(2)
        return cls(boxes, labels, present & ~ignored, present & ignored)


def wide(values: Tensor) -> Tensor:
    """Return `values` in the precision of losses and boxes: float64 if they are float64, else float32."""
    return values if values.dtype == torch.float64 else values.float()


def area(boxes: Tensor) -> Tensor:
    """Return the areas (…) of boxes (…, 4); an inverted box has none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Return the areas of intersection (…, M, A) of boxes (…, M, 4) and (…, A, 4)."""
    left, top, right, bottom = first.movedim(-1, 0).unsqueeze(-1).unbind()
    # Contiguous, since the inner loops run over them.
    x1, y1, x2, y2 = second.movedim(-1, 0).contiguous().unsqueeze(-2).unbind()
    width = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp_(min=0)
    return (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp_(min=0).mul_(width)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return intersection over union (…, M, A) of boxes (…, M, 4) and (…, A, 4); 0 if both are empty.

    >>> iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 1], [1, 1, 3, 3]]))
    tensor([[0.5000, 0.1429]])
    """
    common = intersection(first, second)
    union = area(first).unsqueeze(-1) + area(second).unsqueeze(-2) - common
    return common.div_(union.clamp_(min=SMALLEST))


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Return generalised IoU (…, M, A) of boxes (…, M, 4) and (…, A, 4): IoU − the share of their hull outside of both.

    >>> giou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 1], [2, 0, 4, 2], [4, 0, 6, 2]]))
    tensor([[ 0.5000,  0.0000, -0.3333]])
    """
    common = intersection(first, second)
    union = area(first).unsqueeze(-1) + area(second).unsqueeze(-2) - common
    left, right = first.unsqueeze(-2), second.unsqueeze(-3)
    low, high = torch.minimum(left[..., :2], right[..., :2]), torch.maximum(left[..., 2:], right[..., 2:])
    hull = (high - low).prod(-1).clamp(min=SMALLEST)
    return common / union.clamp(min=SMALLEST) - (hull - union) / hull


def encode(boxes: Tensor, anchors: Tensor, std: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Return the deltas from anchors to boxes: ``(Δx/w, Δy/h, log(w'/w), log(h'/h)) / std``, Δ between the centres.

    Args:
        boxes: (…, 4).
        anchors: (…, 4), of width w and height h.
        std: of the four deltas over a data set, so that the learned values have variance 1.
    """
    side, to = (anchors[..., 2:] - anchors[..., :2]).clamp(min=SMALLEST), boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / (2 * side)
    return torch.cat([shift, (to.clamp(min=SMALLEST) / side).log()], -1) / boxes.new_tensor(std)


def decode(
    deltas: Tensor, anchors: Tensor, std: Sequence[float] = (1.0, 1.0, 1.0, 1.0), *, limit_shrinking: bool = False
) -> Tensor:
    """Return the boxes (…, 4) that `deltas` and `anchors` encode: the inverse of :func:`encode`.

    No side grows by a factor of more than 1000/16, or, with `limit_shrinking`, shrinks by more.

    >>> anchors, boxes = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[1.0, 1, 9, 3]])
    >>> decode(encode(boxes, anchors), anchors)
    tensor([[1., 1., 9., 3.]])
    """
    deltas = deltas * deltas.new_tensor(std)
    side, centre = anchors[..., 2:] - anchors[..., :2], (anchors[..., :2] + anchors[..., 2:]) / 2
    centre = centre + deltas[..., :2] * side
    half = side * deltas[..., 2:].clamp(min=-LARGEST if limit_shrinking else None, max=LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def corners(boxes: Tensor) -> Tensor:
    """Return boxes (…, 4) given by centre and size as x1, y1, x2, y2."""
    centre, size = boxes.chunk(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def relative(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes (…, 4), x1, y1, x2, y2 in pixels, as centre and size relative to images of `sizes` (…, 2).

    >>> relative(torch.tensor([2.0, 4, 6, 6]), torch.tensor([8.0, 10.0]))
    tensor([0.5000, 0.5000, 0.5000, 0.2000])
    """
    first, last = boxes.chunk(2, -1)
    return torch.cat([(first + last) / 2 / sizes, (last - first) / sizes], -1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes (…, 4) clipped to images of `sizes` (…, 2), width first; shapes broadcast."""
    return torch.minimum(boxes, torch.cat([sizes, sizes], -1)).clamp(min=0)


def match(
    boxes: Tensor, truth: Truth, low: float, high: float, *, keep_best: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Match every box to the true box that it overlaps most, and classify it as positive, negative or neither.

    Positive: IoU ≥ `high`. Negative: IoU < `low` and not mostly inside a box marked `ignore`.

    Args:
        boxes: (N, A, 4), or (A, 4) for all images.
        truth: the true boxes of N images.
        low: IoU below which a box is negative.
        high: IoU from which a box is positive.
        keep_best: a box is also positive if no other has a larger IoU (above 0) with some true box.

    Returns:
        index of the true box (N, A), positive (N, A), negative (N, A).
    """
    overlaps = iou(truth.boxes, boxes).masked_fill_(~truth.present.unsqueeze(2), -1.0)
    best, index = overlaps.max(1)
    positive, negative = best >= high, best < low
    if keep_best:
        top = overlaps.amax(2, keepdim=True)
        best_of_some = ((overlaps == top) & (top > 0)).any(1)
        positive |= best_of_some
        negative &= ~best_of_some
    if truth.ignored.any():
        negative &= ~covered(boxes, truth)
    return index, positive, negative


def covered(boxes: Tensor, truth: Truth) -> Tensor:
    """Return which boxes (N, A, 4) lie mostly inside a true box marked `ignore`, (N, A)."""
    cover = intersection(truth.boxes, boxes).masked_fill_(~truth.ignored.unsqueeze(2), 0.0)
    return cover.amax(1) > COVERED * area(boxes)


def sample(positive: Tensor, negative: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Draw up to `count` boxes per image: at most a `share` of positives, the rest negatives.

    The draw is uniform, without replacement, from torch's global generator.

    Args:
        positive: (N, A).
        negative: (N, A).
        count: boxes drawn per image, if there are enough.
        share: largest share of positives.

    Returns:
        index (N, S) into A, and which columns are drawn (N, S); the others are padding. The first ``⌊count·share⌋``
        columns, or the first A if that is fewer, hold the positives.
    """
    N, A = positive.shape
    keys = torch.rand(N, A, device=positive.device)
    first = torch.where(positive, keys, -1.0).topk(min(int(count * share), A), 1)
    drawn = first.values >= 0
    second = torch.where(negative, keys, -1.0).topk(min(count, A), 1)
    left = count - drawn.sum(1, keepdim=True)
    rest = (second.values >= 0) & (torch.arange(second.values.shape[1], device=keys.device) < left)
    return torch.cat([first.indices, second.indices], 1), torch.cat([drawn, rest], 1)


def mean(values: Tensor, picture: Tensor, N: int) -> Tensor:
    """Return the mean over N images of the mean of each image's `values` (R,), which is 0 if it has none.

    A loss of this form is the same for a batch and, averaged, for the parts of the batch on several processes.
    """
    counts = torch.bincount(picture, minlength=N)
    return (values / counts[picture]).sum() / N


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[n, index[n, s]]``: (N, S, …) of values (N, A, …) and index (N, S)."""
    tail = values.shape[2:]
    return values.gather(1, index.reshape(*index.shape, *[1] * len(tail)).expand(*index.shape, *tail))
