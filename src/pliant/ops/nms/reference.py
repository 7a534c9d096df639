"""Non-maximum suppression in plain PyTorch: the definition, box by box."""

from __future__ import annotations

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> Tensor:
    """Keep the best box, drop those of its class with ``IoU > iou_threshold``, go on with the best of the rest.

    Arguments are already checked. Low precision computes in float32.
    """
    box = boxes if boxes.dtype == torch.float64 else boxes.float()
    x1, y1, x2, y2 = box.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    # NaN would be sorted before every number.
    score = torch.where(scores.isnan(), -torch.inf, scores)
    rest = score.argsort(descending=True, stable=True)
    kept = []
    while rest.numel():
        best, rest = rest[0], rest[1:]
        kept.append(best)
        width = (torch.minimum(x2[best], x2[rest]) - torch.maximum(x1[best], x1[rest])).clamp(min=0)
        height = (torch.minimum(y2[best], y2[rest]) - torch.maximum(y1[best], y1[rest])).clamp(min=0)
        common = width * height
        # Compared in float64, or the threshold would be rounded to float32; 0/0 is NaN, which exceeds no threshold.
        drop = (common / (area[best] + area[rest] - common)).double() > iou_threshold
        if classes is not None:
            drop &= classes[rest] == classes[best]
        rest = rest[~drop]
    return torch.stack(kept) if kept else rest
