"""Anchors by hand, the RPN's losses by hand, what it proposes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.models import boxes
from pliant.models.boxes import Truth
from pliant.models.rpn import RPN, Anchors, ranked


def _truth(*pictures: list[tuple[float, ...]]) -> Truth:
    targets = [
        {"boxes": torch.tensor(found).reshape(-1, 4), "labels": torch.zeros(len(found), dtype=torch.long)}
        for found in pictures
    ]
    return Truth.pad(targets, torch.device("cpu"))


def _silent(**options: Any) -> RPN:
    """Return an RPN that predicts 0 everywhere, on one map of stride 8 with square anchors of 16."""
    rpn = RPN(4, [8], [[16.0]], **({"ratios": [1.0], "hidden": 4} | options))
    for parameter in rpn.parameters():
        torch.nn.init.zeros_(parameter)
    return rpn


def test_anchors_by_hand() -> None:
    anchors = Anchors([8, 16], [[16.0, 32.0], [64.0, 128.0]], [0.25, 1.0])
    found, corners = anchors([torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 1, 2)])
    assert found.shape == ((6 + 2) * 4, 4) and corners.shape == (32, 2)
    # Cell (0, 0) of stride 8: middle (4, 4). Size 16, ratio 1/4: 32 wide, 8 high. Then ratio 1, then size 32.
    assert found[:4].tolist() == [[-12, 0, 20, 8], [-4, -4, 12, 12], [-28, -4, 36, 12], [-12, -12, 20, 20]]
    # Cell (1, 2): middle (20, 12). Order: rows, columns, sizes, ratios.
    assert found[(1 * 3 + 2) * 4 + 1].tolist() == [12, 4, 28, 20] and corners[(1 * 3 + 2) * 4 + 1].tolist() == [16, 8]
    # Cell (0, 1) of stride 16: middle (24, 8).
    assert found[24 + 4 + 1].tolist() == [-8, -24, 56, 40] and corners[-1].tolist() == [16, 0]


def test_anchors_have_their_areas_and_ratios() -> None:
    found, _ = Anchors([4], [[8.0, 30.0]], [0.5, 1.0, 2.0])([torch.zeros(1, 1, 5, 5)])
    side = (found[:, 2:] - found[:, :2]).reshape(25, 2, 3, 2)
    torch.testing.assert_close(side.prod(3).sqrt(), torch.tensor([8.0, 30.0])[:, None].expand(25, 2, 3))
    torch.testing.assert_close(side[..., 1] / side[..., 0], torch.tensor([0.5, 1.0, 2.0]).expand(25, 2, 3))


def test_anchors_are_made_once_for_each_size() -> None:
    anchors = Anchors([8], [[16.0]], [1.0])
    with torch.inference_mode():
        first, _ = anchors([torch.zeros(1, 1, 2, 2)])
    assert not first.is_inference() and anchors([torch.zeros(5, 9, 2, 2)])[0] is first
    assert len(anchors([torch.zeros(1, 1, 3, 2)])[0]) == 6
    assert not anchors.state_dict()


def test_losses_by_hand() -> None:
    rpn = _silent(samples=100, high=0.7, low=0.3)
    # Anchors around (4 + 8j, 4 + 8i). The true box is that of cell (1, 1), [4, 4, 20, 20], moved and widened by 1.
    truth = _truth([(5.0, 4, 22, 20)], [])
    _, _, losses = rpn([torch.zeros(2, 4, 4, 4)], torch.tensor([[32.0, 32], [32, 32]]), truth)
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2), rel=1e-6)  # every logit is 0
    goal = torch.tensor([1.5 / 16, 0, math.log(17 / 16), 0])
    overlaps = boxes.iou(truth.boxes[0, :1], rpn.anchors([torch.zeros(1, 1, 4, 4)])[0])[0]
    assert (overlaps >= 0.7).sum() == 1
    # Drawn: of the 16 anchors of the first picture those below 0.3 and the one positive; half of the mean over both.
    count = 2 * (1 + int((overlaps < 0.3).sum()))
    linear = (goal.abs() - 0.5 / 9)[[0, 2]].clamp(min=0)
    square = (goal**2 / 2 * 9)[[0, 2]]
    apart = torch.where(goal[[0, 2]].abs() < 1 / 9, square, linear).sum()
    assert losses["rpn_box"].item() == pytest.approx(apart.item() / count, rel=1e-5)


def test_anchors_in_the_padding_count_for_nothing() -> None:
    rpn = _silent(samples=1000)
    # Of a 32×32 batch the first picture fills 9×32: two of four columns of cells. The second is one pixel.
    sizes = torch.tensor([[9.0, 32], [1, 1]])
    with torch.no_grad():
        rpn.predict.bias[0] = 3.0
    _, _, losses = rpn([torch.zeros(2, 4, 4, 4)], sizes, _truth([], []))
    assert losses["rpn_objectness"].item() == pytest.approx(math.log1p(math.exp(3)), rel=1e-6)
    assert losses["rpn_box"].item() == 0
    proposals, present, _ = rpn.eval()([torch.zeros(2, 4, 4, 4)], sizes, None)
    assert present.sum(1).tolist()[1] == 1 and proposals[1, 0].tolist() == [0, 0, 1, 1]
    assert (proposals[0, present[0]][:, 2] <= 9).all()


@pytest.mark.parametrize(("side", "cells"), [(7.9, 1), (8.0, 1), (8.1, 4), (16.0, 4), (16.1, 9)])
def test_a_cell_that_begins_at_the_edge_is_outside(side: float, cells: int) -> None:
    rpn = _silent(samples=1000, share=1.0)
    # Logit 1 in the first cell, 3 in all others.
    with torch.no_grad():
        rpn.conv.weight[0, 0, 1, 1] = rpn.predict.weight[0, 0] = 1.0
    x = torch.full((1, 4, 4, 4), 3.0)
    x[0, 0, 0, 0] = 1.0
    _, _, losses = rpn([x], torch.tensor([[side, side]]), _truth([]))
    first, other = (math.log1p(math.exp(logit)) for logit in (1, 3))
    assert losses["rpn_objectness"].item() == pytest.approx((first + (cells - 1) * other) / cells, rel=1e-5)


def _scored(logits: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the proposals of a 32×32 picture from the logits (4, 4) of its anchors."""
    rpn = _silent(**options).eval()
    rpn.predict = torch.nn.Conv2d(4, 5, 1)
    torch.nn.init.zeros_(rpn.predict.weight)
    torch.nn.init.zeros_(rpn.predict.bias)
    with torch.no_grad():
        rpn.predict.weight[0, 0] = 1.0
        rpn.conv.weight[0, 0, 1, 1] = 1.0
        rpn.conv.bias[0] = 10.0
    x = torch.zeros(1, 4, 4, 4)
    x[0, 0] = logits
    proposals, present, losses = rpn([x], torch.tensor([[32.0, 32]]), None)
    assert not losses
    return proposals[0], present[0]


def test_proposals_are_the_best_not_suppressed_and_inside() -> None:
    logits = torch.zeros(4, 4)
    logits[2, 2], logits[0, 0] = 5.0, 3.0
    # Neighbours overlap by a third: all 16 stay.
    proposals, present = _scored(logits, nms_threshold=0.7)
    assert present.all() and len(present) == 16
    assert proposals[0].tolist() == [12, 12, 28, 28] and proposals[1].tolist() == [0, 0, 12, 12]
    assert proposals.min() == 0 and proposals.max() == 32
    # Suppressed from 0.3 on: of the neighbours of the best one none is left.
    proposals, present = _scored(logits, nms_threshold=0.3)
    overlaps = boxes.iou(proposals[present], proposals[present]).fill_diagonal_(0)
    assert present.sum() < 16 and overlaps.max() <= 0.3
    # Only so many before and after suppression.
    proposals, present = _scored(logits, post_nms=(1, 3))
    assert proposals.shape == (3, 4) and present.all() and proposals[0].tolist() == [12, 12, 28, 28]
    proposals, present = _scored(logits, pre_nms=(1, 2))
    assert sorted(proposals[present].tolist()) == [[0, 0, 12, 12], [12, 12, 28, 28]]


def test_proposals_survive_broken_predictions() -> None:
    logits = torch.zeros(4, 4)
    logits[1, 1], logits[2, 2] = float("nan"), float("inf")
    proposals, present = _scored(logits)
    assert proposals.isfinite().all() and 0 < present.sum() <= 14


def test_levels_do_not_suppress_each_other() -> None:
    # The same anchors on both maps: each proposes them all.
    rpn = RPN(4, [8, 8], [[16.0], [16.0]], [1.0], hidden=4).eval()
    for parameter in rpn.parameters():
        torch.nn.init.zeros_(parameter)
    maps = [torch.zeros(3, 4, 4, 4)] * 2
    _, present, _ = rpn(maps, torch.tensor([[32.0, 32]] * 3), None)
    assert present.sum(1).tolist() == [32] * 3


def test_pictures_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    rpn = RPN(4, [8, 16], [[16.0], [32.0]], hidden=4).eval()
    maps = [torch.randn(3, 4, 8, 8), torch.randn(3, 4, 4, 4)]
    sizes = torch.tensor([[64.0, 64], [40, 64], [64, 13]])
    together, present, _ = rpn(maps, sizes, None)
    for n in range(3):
        alone, here, _ = rpn([x[n : n + 1] for x in maps], sizes[n : n + 1], None)
        torch.testing.assert_close(together[n, present[n]], alone[0, here[0]])


def test_gradients_reach_the_head_and_proposals_carry_none() -> None:
    torch.manual_seed(0)
    rpn = RPN(4, [8], [[16.0]], hidden=8)
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    proposals, _, losses = rpn([x], torch.tensor([[32.0, 32]]), _truth([(4.0, 4, 21, 20)]))
    assert not proposals.requires_grad
    sum(losses.values()).backward()
    for tensor in (x, *rpn.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0


def test_error() -> None:
    for wrong, sentence in (
        ({"pre_nms": (0, 9)}, r"pre_nms must be two numbers of at least 1, .* got \(0, 9\)"),
        ({"post_nms": (1,)}, r"post_nms must be two numbers of at least 1, .* got \(1,\)"),
        ({"pre_nms": 5}, "pre_nms must be two numbers of at least 1, .* got 5"),
        ({"samples": 0}, "hidden and samples must be at least 1, got 4 and 0"),
        ({"nms_threshold": -1}, "nms_threshold must be from 0 to 1, got -1"),
        ({"ratios": (-1.0,)}, r"anchors must have positive sizes and ratios, got .* and \(-1\.0,\)"),
    ):
        with pytest.raises(ValueError, match=f"^RPN: {sentence}"):
            _silent(**wrong)


def test_ranked() -> None:
    picture, order, rank = ranked(torch.tensor([2, 0, 2, 0, 2]), torch.tensor([9, 8, 7, 6, 5]), 4)
    assert (
        picture.tolist() == [0, 0, 2, 2, 2] and order.tolist() == [8, 6, 9, 7, 5] and rank.tolist() == [0, 1, 0, 1, 2]
    )
