"""Losses of a set of predictions: each true box is matched with one prediction, at the least total cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.models import boxes
from pliant.models.boxes import Truth

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
IMPOSSIBLE = 1e6  # cost of what must not be matched


def set_loss(
    logits: Tensor,
    found: Tensor,
    truth: Truth,
    weights: Sequence[float],
    *,
    valid: Tensor | None = None,
    times: int = 1,
) -> Tensor:
    """Return the focal, L1 and generalised-IoU losses (3,) of predictions matched one to one with the true boxes.

    Each is a sum over an image's predictions, divided by the number of matched ones, and a mean over images. A
    prediction that is not matched and lies mostly inside a box marked `ignore` has no loss.

    Args:
        logits: (N, Q, C).
        found: boxes (N, Q, 4), centre and size relative to the image.
        truth: of N images, its boxes likewise.
        weights: of the three losses, and of the costs of matching.
        valid: (N, Q), predictions that may be matched and have a loss; None: all.
        times: so many predictions are matched with each true box.

    Raises:
        ImportError: SciPy is missing.

    Source: Carion et al., ECCV 2020, section 3.1; focal costs: Zhu et al., ICLR 2021, appendix A.4.
    """
    N, Q, C = logits.shape
    moved = truth._replace(boxes=boxes.corners(truth.boxes))
    apart = (truth.boxes.unsqueeze(2) - found.unsqueeze(1)).abs().sum(3)
    overlap = boxes.giou(moved.boxes, boxes.corners(found))
    with torch.no_grad():
        own = logits.gather(2, truth.labels.unsqueeze(1).expand(N, Q, -1)).transpose(1, 2)
        one = torch.ones_like(own)
        cost = weights[0] * (focal(own, one) - focal(own, 1 - one)) + weights[1] * apart - weights[2] * overlap
        # A diverged network has NaN, which its loss reports.
        cost = cost.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, -IMPOSSIBLE)
        counted = ~boxes.covered(boxes.corners(found), moved)
        if valid is not None:
            cost, counted = cost.masked_fill(~valid.unsqueeze(1), IMPOSSIBLE), counted & valid
        index, positive = assign(cost, truth.present, times)
        if valid is not None:
            positive &= valid
        share = 1 / (N * positive.sum(1, keepdim=True).clamp(min=1))
        target = (F.one_hot(boxes.take(truth.labels, index), C) * positive.unsqueeze(2)).to(logits.dtype)
    classification = (focal(logits, target).sum(2) * (counted | positive) * share).sum()
    box = (apart.gather(1, index.unsqueeze(1)).squeeze(1) * positive * share).sum()
    giou = ((1 - overlap.gather(1, index.unsqueeze(1)).squeeze(1)) * positive * share).sum()
    return torch.stack([w * loss for w, loss in zip(weights, (classification, box, giou), strict=True)])


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss of every logit, ``−α_t·(1 − p_t)^γ·log p_t``, where p_t is what `target`, 0 or 1, has.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    >>> focal(torch.zeros(2), torch.tensor([1.0, 0.0]))  # ¼ and ¾ of ½²·log 2
    tensor([0.0433, 0.1300])
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    scale = ALPHA * target + (1 - ALPHA) * (1 - target)
    return scale * (logits.sigmoid() - target).abs() ** GAMMA * entropy


def assign(cost: Tensor, present: Tensor, times: int = 1) -> tuple[Tensor, Tensor]:
    """Match true boxes and predictions at the least total cost (the Hungarian method).

    Args:
        cost: (N, M, Q), finite.
        present: (N, M), which true boxes there are.
        times: so many predictions are matched with each of them, as far as there are enough.

    Returns:
        The index (N, Q) of each prediction's true box, and which predictions are matched (N, Q).

    Raises:
        ImportError: SciPy is missing.

    >>> assign(torch.tensor([[[1.0, 2.0, 9.0], [0.0, 9.0, 9.0]]]), torch.tensor([[True, True]]))
    (tensor([[1, 0, 0]]), tensor([[ True,  True, False]]))
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("DeformableDETR: training needs the package scipy: pip install scipy") from error
    N, _, Q = cost.shape
    index, matched = torch.zeros(N, Q, dtype=torch.long), torch.zeros(N, Q, dtype=torch.bool)
    for i, (costs, mask) in enumerate(zip(cost.double().cpu(), present.cpu(), strict=True)):
        which = mask.nonzero()[:, 0].repeat(times)
        rows, columns = (torch.from_numpy(found) for found in linear_sum_assignment(costs[which].numpy()))
        index[i, columns], matched[i, columns] = which[rows], True
    return index.to(cost.device), matched.to(cost.device)
