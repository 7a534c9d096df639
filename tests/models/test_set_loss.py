"""Matching and the losses of a set of predictions, by hand."""

from __future__ import annotations

import builtins
import math
from itertools import permutations
from typing import Any

import pytest
import torch

from pliant.models import boxes
from pliant.models.boxes import Truth
from pliant.models.set_loss import assign, focal, set_loss

EVEN = (1.0, 1.0, 1.0)


def _truth(found: list[list[float]], labels: list[int], ignored: list[bool] | None = None) -> Truth:
    """Return the truth of one image, whose boxes are centre and size relative to it."""
    hidden = torch.tensor([ignored or [False] * len(labels)])
    return Truth(torch.tensor([found]), torch.tensor([labels]), ~hidden, hidden)


def test_the_matching_is_the_cheapest_of_all() -> None:
    random = torch.Generator().manual_seed(1)
    cost = torch.rand(6, 3, 5, generator=random)
    index, matched = assign(cost, torch.ones(6, 3, dtype=torch.bool))
    for costs, which, here in zip(cost, index, matched, strict=True):
        least = min(sum(float(costs[m, q]) for m, q in enumerate(order)) for order in permutations(range(5), 3))
        columns = here.nonzero()[:, 0]
        assert sorted(which[columns].tolist()) == [0, 1, 2]
        assert float(costs[which[columns], columns].sum()) == pytest.approx(least)


def test_absent_boxes_and_repetitions() -> None:
    cost = torch.tensor([[[0.0, 9, 9, 9], [1.0, 2, 3, 4], [0.0, 0, 0, 0]]])
    index, matched = assign(cost, torch.tensor([[False, True, False]]))
    assert index.tolist() == [[1, 0, 0, 0]] and matched.tolist() == [[True, False, False, False]]
    index, matched = assign(cost, torch.tensor([[False, True, False]]), times=3)
    assert index.tolist() == [[1, 1, 1, 0]] and matched.tolist() == [[True, True, True, False]]
    # More boxes than predictions: as many as there are.
    assert assign(cost, torch.ones(1, 3, dtype=torch.bool), times=2)[1].all()
    assert not assign(cost, torch.zeros(1, 3, dtype=torch.bool))[1].any()


def test_focal_by_hand() -> None:
    logits, target = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 1.0, 0.0])
    p = [1 / (1 + math.exp(-x)) for x in logits.tolist()]
    wanted = [-0.25 * (1 - q) ** 2 * math.log(q) for q in p[:2]] + [-0.75 * p[2] ** 2 * math.log(1 - p[2])]
    torch.testing.assert_close(focal(logits, target), torch.tensor(wanted))


def test_losses_by_hand() -> None:
    # The first prediction is the box of class 1, half as wide; the second is far away.
    truth = _truth([[0.5, 0.5, 0.4, 0.2]], [1])
    found = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.9, 0.1, 0.1]]])
    logits = torch.tensor([[[-1.0, 2.0], [0.5, -3.0]]])
    losses = set_loss(logits, found, truth, (2.0, 5.0, 3.0))
    # One prediction is matched: one divides the sums. All of the smaller box lies in the larger one, their hull.
    classification = focal(logits, torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])).sum()
    torch.testing.assert_close(losses, torch.stack([2 * classification, torch.tensor(5 * 0.2), torch.tensor(3 * 0.5)]))


def test_weights_decide_what_is_matched() -> None:
    truth = _truth([[0.5, 0.5, 0.4, 0.4]], [0])
    found = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]]])
    logits = torch.tensor([[[-4.0], [4.0]]])  # the exact box is the improbable one
    assert set_loss(logits, found, truth, (0.0, 1.0, 0.0))[1] == 0
    torch.testing.assert_close(set_loss(logits, found, truth, (9.0, 1.0, 0.0))[1], torch.tensor(1.2))


def test_each_image_counts_alike() -> None:
    random = torch.Generator().manual_seed(2)
    one = _truth([[0.3, 0.4, 0.2, 0.3], [0.6, 0.6, 0.3, 0.2], [0.5, 0.2, 0.2, 0.2]], [0, 1, 0])
    other = _truth([[0.7, 0.4, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], [2, 0, 0])
    other = other._replace(present=torch.tensor([[True, False, False]]))
    both = Truth(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
    logits, found = torch.randn(2, 6, 3, generator=random), torch.rand(2, 6, 4, generator=random)
    apart = [set_loss(logits[i : i + 1], found[i : i + 1], truth, EVEN) for i, truth in enumerate((one, other))]
    torch.testing.assert_close(set_loss(logits, found, both, EVEN), (apart[0] + apart[1]) / 2)


def test_what_is_not_valid_or_ignored_has_no_loss() -> None:
    truth = _truth([[0.25, 0.5, 0.3, 0.3], [0.75, 0.5, 0.4, 0.4]], [0, 0], [False, True])
    # In the object, in the ignored one, half of the size of the background.
    found = torch.tensor([[[0.25, 0.5, 0.3, 0.3], [0.75, 0.5, 0.2, 0.2], [0.5, 0.1, 0.1, 0.1]]], requires_grad=True)
    logits = torch.tensor([[[1.0], [1.0], [1.0]]], requires_grad=True)
    set_loss(logits, found, truth, EVEN).sum().backward()
    assert logits.grad is not None and (logits.grad[0, :, 0] != 0).tolist() == [True, False, True]
    logits.grad = None
    valid = torch.tensor([[True, True, False]])
    set_loss(logits, found, truth, EVEN, valid=valid).sum().backward()
    assert (logits.grad[0, :, 0] != 0).tolist() == [True, False, False]
    # The only good one is not valid: the next best is matched, or none is.
    assert set_loss(logits, found, truth, EVEN, valid=~valid)[1] > 1
    losses = set_loss(logits, found, truth, EVEN, valid=torch.zeros(1, 3, dtype=torch.bool))
    assert losses.tolist() == [0, 0, 0]


def test_no_boxes_and_nan() -> None:
    truth = _truth([[0.0, 0.0, 0.0, 0.0]], [0])._replace(present=torch.zeros(1, 1, dtype=torch.bool))
    logits, found = torch.zeros(1, 4, 2), torch.rand(1, 4, 4)
    losses = set_loss(logits, found, truth, EVEN)
    assert losses[0] == pytest.approx(8 * 0.75 * 0.25 * math.log(2)) and losses[1:].tolist() == [0, 0]
    broken = set_loss(logits * torch.nan, found, _truth([[0.5, 0.5, 0.1, 0.1]], [0]), EVEN)
    assert broken[0].isnan()


def test_scipy_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"^DeformableDETR: training needs the package scipy: pip install scipy$"):
        assign(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))


def test_boxes_there_and_back() -> None:
    found = torch.tensor([[[8.0, 10, 24, 20], [0.0, 0, 64, 40]]])
    sizes = torch.tensor([[64.0, 40.0]])
    near = boxes.relative(found, sizes.unsqueeze(1))
    torch.testing.assert_close(near[0, 0], torch.tensor([0.25, 0.375, 0.25, 0.25]))
    torch.testing.assert_close(boxes.corners(near) * sizes.repeat(1, 2), found)
