"""Functions that mmcv compiles and that are none of our operators: they are called as mmcv calls them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

LINEAR = 1  # method of soft suppression; 0 drops boxes, 2 is Gaussian


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the maxima of the bins of RoIs (R, 5) into `output` (R, C, Ph, Pw), and their places into `argmax`.

    mmcv's bins are not those of :func:`pliant.ops.roi_pool`: corners are not rounded, and a box reaches from
    ``x1·scale`` to ``(x2 + 1)·scale``. A bin without pixels is 0 with the place −1, an RoI without area is left alone.
    """
    H, W = input.shape[2:]
    places = rois[:, 0].long().tolist()
    low = rois[:, 1:3] * spatial_scale
    size = (rois[:, 3:] + 1) * spatial_scale - low
    real = (size > 0).all(1)
    steps = [(n, torch.arange(n + 1, dtype=rois.dtype, device=rois.device)) for n in (pooled_width, pooled_height)]
    edges = [size[:, i : i + 1] / n * step + low[:, i : i + 1] for i, (n, step) in enumerate(steps)]  # (R, n + 1) each
    starts = [edge[:, :-1].floor().clamp(0, end).long().tolist() for edge, end in zip(edges, (W, H), strict=True)]
    stops = [edge[:, 1:].ceil().clamp(0, end).long().tolist() for edge, end in zip(edges, (W, H), strict=True)]
    for r in real.nonzero()[:, 0].tolist():
        for i, j in itertools.product(range(pooled_height), range(pooled_width)):
            (left, top), (right, bottom) = (starts[0][r][j], starts[1][r][i]), (stops[0][r][j], stops[1][r][i])
            output[r, :, i, j], argmax[r, :, i, j] = 0, -1
            if right <= left or bottom <= top:
                continue
            best, where = input[places[r], :, top:bottom, left:right].flatten(1).max(1)
            rows, columns = where // (right - left) + top, where % (right - left) + left
            output[r, :, i, j], argmax[r, :, i, j] = best, (rows * W + columns).to(argmax.dtype)


def roi_pool_backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of the maxima to `grad_input` at their places."""
    size = (rois[:, 3:] - rois[:, 1:3] + 1) * spatial_scale
    kept = (argmax >= 0) & (size > 0).all(1).view(-1, 1, 1, 1)
    r, c, i, j = kept.nonzero(as_tuple=True)
    flat = grad_input.flatten(2)
    flat.index_put_((rois[r, 0].long(), c, argmax[r, c, i, j].long()), grad[r, c, i, j], accumulate=True)
    grad_input.copy_(flat.view_as(grad_input))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Suppress boxes softly: take the best, lower the scores of those that it overlaps, and go on without it.

    Returns:
        The indices (kept,) in the order in which boxes were taken; `dets` (n, 5) has their boxes and lowered scores in
        its first rows.
    """
    x, scores = boxes.float().clone(), scores.float().clone()
    areas = (x[:, 2:] - x[:, :2] + offset).prod(1)
    index = torch.arange(len(x))
    i, n = 0, len(x)
    while i < n:
        top = i + int(scores[i:n].argmax())
        for values in (x, scores, areas, index):
            values[[i, top]] = values[[top, i]]
        dets[i, :4], dets[i, 4] = x[i], scores[i]
        rest = slice(i + 1, n)
        sides = torch.minimum(x[i, 2:], x[rest, 2:]) - torch.maximum(x[i, :2], x[rest, :2]) + offset
        common = sides.clamp(min=0).prod(1)
        overlap = common / (areas[i] + areas[rest] - common)
        if method == 2:
            weight = (-(overlap * overlap) / sigma).exp()
        else:
            weight = torch.where(overlap >= iou_threshold, 1 - overlap if method == LINEAR else 0.0, 1.0)
        scores[rest] *= weight
        # As in mmcv, the last box takes the place of a dropped one, which decides between equal scores.
        low, order, at = (scores < min_score).tolist(), list(range(n)), i + 1
        while at < len(order):
            if low[order[at]]:
                order[at] = order[-1]
                order.pop()
            else:
                at += 1
        n, i = len(order), i + 1
        for values in (x, scores, areas, index):
            values[:n] = values[order]
    return index[:n]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return groups of the rows of `dets` (n, 5): a kept box and those it suppresses, by descending score."""
    boxes, scores = dets[:, :4], dets[:, 4]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    left = scores.argsort(descending=True)
    groups = []
    while len(left):
        best, rest = left[0], left[1:]
        sides = torch.minimum(boxes[best, 2:], boxes[rest, 2:]) - torch.maximum(boxes[best, :2], boxes[rest, :2])
        common = sides.clamp(min=0).prod(1)
        same = common / (areas[best] + areas[rest] - common) >= iou_threshold
        groups.append([int(best), *rest[same].tolist()])
        left = rest[~same]
    return groups
