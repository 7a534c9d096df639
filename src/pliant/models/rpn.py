"""Region proposal network: for anchors at every position of every map, whether they hold an object, and its box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models import boxes
from pliant.models.boxes import Truth
from pliant.ops import batched_nms

RULES = ("middle", "corner", "torchvision")  # of placing anchors


class Anchors(nn.Module):
    """Place boxes of a few sizes and aspect ratios over the cells of every map.

    Cell (i, j) of a map of stride s covers the pixels ``[j·s, (j+1)·s) × [i·s, (i+1)·s)``. An anchor of size a and
    ratio r is a/√r wide and a·√r high. Order: levels, rows, columns, sizes, ratios.

    Args:
        strides: of the maps.
        sizes: for each map the square roots of its anchors' areas, in pixels; the same number for all maps.
        ratios: height / width.
        rule: "middle": an anchor is centred on its cell. "corner": its centre is the upper left corner of its cell, as
            in mmdetection and detectron2. "torchvision": as "corner", half its sides are rounded to whole pixels, and
            cells of a map of H·W cells are ⌊rows/H⌋ pixels high and ⌊columns/W⌋ wide.
    """

    def __init__(
        self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float], rule: str = "middle"
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"RPN: anchor_rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
        self.strides, self.rule = tuple(strides), rule
        self.count = len(sizes[0]) * len(ratios)
        root = torch.tensor(tuple(ratios)).sqrt()
        for i, level in enumerate(sizes):
            size = torch.tensor(tuple(level), dtype=torch.float32)[:, None]
            half = torch.stack([(size / root).flatten(), (size * root).flatten()], 1) / 2
            half = half.round() if rule == "torchvision" else half
            self.register_buffer(f"shapes{i}", torch.cat([-half, half], 1), persistent=False)
        self._made: tuple[object, Tensor, Tensor] | None = None

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the anchors (A, 4), and for each anchor the upper left corner (A, 2) of its cell, x first."""
        key = (maps[0].device, *(x.shape[-2:] for x in maps))
        if self._made is None or self._made[0] != key:
            with torch.inference_mode(False):  # the cached tensors are used in training too
                self._made = (key, *self._make(maps))
        return self._made[1], self._made[2]

    def _make(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        device, anchors, corners = maps[0].device, [], []
        # The sides of padded images are multiples of the finest stride.
        rows, columns = (side * self.strides[0] for side in maps[0].shape[-2:])
        for i, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            H, W = x.shape[-2:]
            high, wide = (rows // H, columns // W) if self.rule == "torchvision" else (stride, stride)
            down, right = torch.meshgrid(
                torch.arange(H, device=device) * high, torch.arange(W, device=device) * wide, indexing="ij"
            )
            corner = torch.stack([right, down], 2).reshape(-1, 1, 2).float()
            middle = (corner + (stride / 2 if self.rule == "middle" else 0)).repeat(1, 1, 2)
            anchors.append((middle + self.get_buffer(f"shapes{i}")).reshape(-1, 4))
            corners.append(corner.expand(-1, self.count, -1).reshape(-1, 2))
        return torch.cat(anchors), torch.cat(corners)


class RPN(nn.Module):
    """Propose boxes: a 3×3 convolution, then one logit and four deltas for each anchor, shared by all maps.

    The losses see `samples` anchors per image, half of them positive if there are enough. An anchor is positive if its
    IoU with a true box is at least 0.7 or the largest for this box, and negative if it is below 0.3 with all. The
    losses are binary cross-entropy, and smooth L1 on the deltas of positives. All images of a batch are processed
    together.

    Args:
        channels: of the maps.
        strides: of the maps.
        sizes: of the anchors, for each map, in pixels.
        ratios: height / width of the anchors.
        hidden: channels of the 3×3 convolution.
        samples: anchors per image that the losses see.
        share: largest share of positives among them.
        high: IoU from which an anchor is positive.
        low: IoU below which it is negative.
        pre_nms: best anchors kept per map before suppression, in training and in evaluation.
        post_nms: best proposals kept per image after suppression, in training and in evaluation.
        nms_threshold: IoU with a better proposal of the same map above which one is dropped.
        beta: error at which smooth L1 changes from quadratic to linear.
        anchor_rule: where anchors are; see :class:`Anchors`.
        in_padding: cells in the padding of a batch count, too.
        smallest: proposals are dropped unless both sides are longer, in pixels.
        limit_shrinking: see :func:`pliant.models.boxes.decode`.

    Raises:
        ValueError: a number below 1, a threshold outside of 0 to 1, anchors without size, an unknown rule.

    Source: Ren et al., "Faster R-CNN", NIPS 2015; beta of its released code (σ = 3).
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        *,
        hidden: int = 256,
        samples: int = 256,
        share: float = 0.5,
        high: float = 0.7,
        low: float = 0.3,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (2000, 1000),
        nms_threshold: float = 0.7,
        beta: float = 1 / 9,
        anchor_rule: str = "middle",
        in_padding: bool = False,
        smallest: float = 1e-3,
        limit_shrinking: bool = False,
    ) -> None:
        super().__init__()
        for what, pair in (("pre_nms", pre_nms), ("post_nms", post_nms)):
            if not isinstance(pair, Sequence) or len(pair) != 2 or min(pair) < 1:
                raise ValueError(
                    f"RPN: {what} must be two numbers of at least 1, for training and evaluation, got {pair!r}"
                )
        if hidden < 1 or samples < 1:
            raise ValueError(f"RPN: hidden and samples must be at least 1, got {hidden} and {samples}")
        if not 0 <= nms_threshold <= 1:
            raise ValueError(f"RPN: nms_threshold must be from 0 to 1, got {nms_threshold}")
        if not ratios or min(ratios) <= 0 or min(min(level, default=0) for level in sizes) <= 0:
            raise ValueError(f"RPN: anchors must have positive sizes and ratios, got {sizes!r} and {ratios!r}")
        self.anchors = Anchors(strides, sizes, ratios, anchor_rule)
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        # One convolution for logits and deltas is faster than two.
        self.predict = nn.Conv2d(hidden, 5 * self.anchors.count, 1)
        for layer in (self.conv, self.predict):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.samples, self.share, self.high, self.low = samples, share, high, low
        self.pre_nms, self.post_nms, self.nms_threshold, self.beta = pre_nms, post_nms, nms_threshold, beta
        self.in_padding, self.smallest, self.limit_shrinking = in_padding, smallest, limit_shrinking

    def forward(
        self, maps: Sequence[Tensor], sizes: Tensor, truth: Truth | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return proposals (N, P, 4), which of them are valid (N, P), and with `truth` the losses.

        Args:
            maps: of N padded images.
            sizes: (N, 2), width and height of each image without its padding.
            truth: None in evaluation.
        """
        N = len(sizes)
        found = [self.predict(F.relu(self.conv(x))).permute(0, 2, 3, 1).reshape(N, -1, 5) for x in maps]
        predicted = boxes.wide(torch.cat(found, 1))
        logits, deltas = predicted[..., 0], predicted[..., 1:]
        anchors, corners = self.anchors(maps)
        inside = (corners < (sizes.new_full((N, 1, 1), math.inf) if self.in_padding else sizes[:, None])).all(2)
        losses = {} if truth is None else self.losses(logits, deltas, anchors, inside, truth)
        with torch.no_grad():
            proposals, present = self.proposals(
                logits.detach(), deltas.detach(), anchors, inside, sizes, [x.shape[1] for x in found]
            )
        return proposals, present, losses

    def losses(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, inside: Tensor, truth: Truth
    ) -> dict[str, Tensor]:
        """Return both losses: means over the sampled anchors of each image, then over images."""
        index, positive, negative = boxes.match(anchors, truth, self.low, self.high, keep_best=True)
        picked, drawn = boxes.sample(positive & inside, negative & inside, self.samples, self.share)
        share = drawn / (len(drawn) * drawn.sum(1, keepdim=True).clamp(min=1))
        is_object = boxes.take(positive, picked)
        score = boxes.take(logits, picked)
        objectness = F.binary_cross_entropy_with_logits(score, is_object.to(score.dtype), share, reduction="sum")
        # Only the first columns can hold positives.
        P = int(self.samples * self.share)
        picked, share = picked[:, :P], share[:, :P] * is_object[:, :P]
        goal = boxes.encode(boxes.take(truth.boxes, boxes.take(index, picked)), anchors[picked])
        apart = F.smooth_l1_loss(boxes.take(deltas, picked), goal, beta=self.beta, reduction="none").sum(2)
        return {"rpn_objectness": objectness, "rpn_box": (share * apart).sum()}

    def proposals(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, inside: Tensor, sizes: Tensor, cells: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the best boxes of each image (N, P, 4), best first, and which of them are valid (N, P)."""
        N, P = len(sizes), self.post_nms[not self.training]
        k = self.pre_nms[not self.training]
        kept, levels, start = [], [], 0
        for i, n in enumerate(cells):
            here = logits[:, start : start + n]
            if n > k:
                kept.append(here.topk(k, 1).indices + start)
            else:
                kept.append(torch.arange(start, start + n, device=here.device).expand(N, n))
            levels.append(torch.full((min(n, k),), i, device=here.device))
            start += n
        index, level = torch.cat(kept, 1), torch.cat(levels)
        moved = boxes.decode(boxes.take(deltas, index), anchors[index], limit_shrinking=self.limit_shrinking)
        found = boxes.clip(moved, sizes[:, None])
        scores = boxes.take(logits, index)
        large = (found[..., 2:] - found[..., :2] > self.smallest).all(2)  # a NaN compares as False
        good = large & scores.isfinite() & boxes.take(inside, index)
        picture, column = good.nonzero(as_tuple=True)
        flat, scores = found[picture, column], scores[picture, column]
        order = batched_nms(flat, scores, picture * len(cells) + level[column], self.nms_threshold)
        picture, order, rank = ranked(picture[order], order, N)
        best = rank < P
        picture, order, rank = picture[best], order[best], rank[best]
        width = min(P, index.shape[1])
        proposals = flat.new_zeros(N, width, 4)
        present = torch.zeros(N, width, dtype=torch.bool, device=flat.device)
        proposals[picture, rank] = flat[order]
        present[picture, rank] = True
        return proposals, present


def ranked(picture: Tensor, order: Tensor, N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Group boxes that are sorted by score by image.

    Args:
        picture: (R,), index of each box's image.
        order: (R,), index of each box.
        N: number of images.

    Returns:
        `picture` and `order` sorted by image, best first in each, and the rank (R,) of each box in its image, from 0.
    """
    picture, by_picture = picture.sort(stable=True)
    counts = torch.bincount(picture, minlength=N)
    first = counts.cumsum(0) - counts
    return picture, order[by_picture], torch.arange(len(picture), device=picture.device) - first[picture]
