"""Boxes: coding, overlap, matching and sampling, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pliant.models import boxes
from pliant.models.boxes import Truth


def _random(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    corner = 80 * torch.rand(*shape, 2, generator=random)
    return torch.cat([corner, corner + 1 + 60 * torch.rand(*shape, 2, generator=random)], -1)


def _truth(*pictures: list[tuple[float, ...]], ignore: tuple[tuple[int, int], ...] = ()) -> Truth:
    targets = []
    for i, found in enumerate(pictures):
        marked = torch.tensor([(i, j) in ignore for j in range(len(found))], dtype=torch.bool)
        each = torch.tensor(found).reshape(-1, 4)
        targets.append({"boxes": each, "labels": torch.arange(len(found)), "ignore": marked})
    return Truth.pad(targets, torch.device("cpu"))


def test_coding_by_hand() -> None:
    anchor = torch.tensor([[10.0, 20, 30, 60]])  # 20×40 around (20, 40)
    box = torch.tensor([[15.0, 40, 55, 60]])  # 40×20 around (35, 50)
    plain = [15 / 20, 10 / 40, math.log(2), math.log(0.5)]
    torch.testing.assert_close(boxes.encode(box, anchor), torch.tensor([plain]))
    std = (0.1, 0.1, 0.2, 0.2)
    scaled = [p / s for p, s in zip(plain, std, strict=True)]
    torch.testing.assert_close(boxes.encode(box, anchor, std), torch.tensor([scaled]))
    torch.testing.assert_close(boxes.decode(torch.tensor([scaled]), anchor, std), box)


def test_coding_there_and_back() -> None:
    found, anchors = _random(3, 50), _random(50, seed=1)
    for std in ((1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)):
        again = boxes.decode(boxes.encode(found, anchors, std), anchors, std)
        torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-3)


def test_coding_stays_finite() -> None:
    flat = torch.tensor([[5.0, 5, 5, 5], [9.0, 9, 3, 3]])
    assert boxes.encode(flat, flat).isfinite().all()
    huge = boxes.decode(torch.full((1, 4), 1e4), torch.tensor([[0.0, 0, 16, 16]]))
    assert huge.isfinite().all() and (huge[0, 2] - huge[0, 0]).item() == pytest.approx(1000)


def test_generalised_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 10, 10]])
    b = torch.tensor([[0.0, 0, 10, 10], [5.0, 0, 15, 10], [20.0, 0, 30, 10], [2.0, 2, 6, 7], [4.0, 4, 4, 4]])
    expected = torch.tensor([[1, 50 / 150, -10 / 30, 20 / 100, 0.0]])
    torch.testing.assert_close(boxes.giou(a, b), expected)
    torch.testing.assert_close(boxes.giou(b, a), expected.T)
    # Axes may be scaled apart; where boxes do not meet there is a slope.
    scale = torch.tensor([3.0, 0.5, 3.0, 0.5])
    torch.testing.assert_close(boxes.giou(a * scale, b * scale), expected)
    apart = torch.tensor([[20.0, 0, 30, 10]], requires_grad=True)
    boxes.giou(a, apart).sum().backward()
    assert apart.grad is not None and apart.grad[0, 0] < 0


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 10, 10], [4.0, 4, 4, 9]])
    b = torch.tensor([[0.0, 0, 10, 10], [5.0, 0, 15, 10], [10.0, 0, 20, 10], [7.0, 7, 3, 3], [2.0, 2, 4, 6]])
    expected = torch.tensor([[1, 50 / 150, 0, 0, 8 / 100], [0.0, 0, 0, 0, 0]])
    torch.testing.assert_close(boxes.iou(a, b), expected)
    # In batches, with other boxes in each.
    batch = boxes.iou(torch.stack([a, a + 1]), torch.stack([b, b + 1]))
    torch.testing.assert_close(batch, expected.expand(2, -1, -1))
    torch.testing.assert_close(boxes.area(b), torch.tensor([100.0, 100, 100, 0, 8]))


def test_iou_is_what_counting_pixels_gives() -> None:
    a, b = _random(6).round(), _random(7, seed=1).round()

    def drawn(box: Tensor) -> Tensor:
        canvas = torch.zeros(160, 160, dtype=torch.bool)
        x1, y1, x2, y2 = box.int().tolist()
        canvas[y1:y2, x1:x2] = True
        return canvas

    counted = [[((drawn(p) & drawn(q)).sum() / (drawn(p) | drawn(q)).sum()).item() for q in b] for p in a]
    torch.testing.assert_close(boxes.iou(a, b), torch.tensor(counted))


def test_clip() -> None:
    found = torch.tensor([[[-5.0, 2, 30, 12]], [[1.0, -9, 50, -3]]])
    sizes = torch.tensor([[20.0, 10], [40, 30]])[:, None]
    assert boxes.clip(found, sizes).tolist() == [[[0, 2, 20, 10]], [[1, 0, 40, 0]]]


def test_truth_is_padded_and_boxes_without_area_left_out() -> None:
    truth = _truth([(0, 0, 4, 4), (3, 3, 3, 9), (1, 1, 5, 5)], [], [(0, 0, 1, 1)], ignore=((0, 2),))
    assert truth.boxes.shape == (3, 3, 4) and truth.labels[0].tolist() == [0, 1, 2]
    assert truth.present.tolist() == [[True, False, False], [False] * 3, [True, False, False]]
    assert truth.ignored.tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert _truth([]).boxes.shape == (1, 1, 4)


def test_matching_by_hand() -> None:
    truth = _truth([(0, 0, 10, 10), (20, 0, 30, 10)], [])
    # IoU with the first: 1, 0.8, 0.5, 0.25; the fifth is the second's best, 1/3, the sixth touches none.
    candidates = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [0, 0, 5, 5], [25, 0, 35, 10], [40, 40, 50, 50]]
    )
    index, positive, negative = boxes.match(candidates, truth, 0.4, 0.7)
    assert positive.tolist() == [[True, True, False, False, False, False], [False] * 6]
    assert negative.tolist() == [[False, False, False, True, True, True], [True] * 6]
    assert index[0, :5].tolist() == [0, 0, 0, 0, 1]
    _, positive, negative = boxes.match(candidates, truth, 0.4, 0.7, keep_best=True)
    assert positive.tolist() == [[True, True, False, False, True, False], [False] * 6]
    assert negative.tolist() == [[False, False, False, True, False, True], [True] * 6]


def test_an_iou_at_a_threshold() -> None:
    # 0.5 and 0.25, exactly: positive from `high` on, negative below `low`.
    truth = _truth([(0, 0, 10, 10)])
    _, positive, negative = boxes.match(torch.tensor([[0.0, 0, 10, 5], [0, 0, 5, 5]]), truth, 0.25, 0.5)
    assert (positive.tolist(), negative.tolist()) == ([[True, False]], [[False, False]])


def test_the_best_box_of_a_true_one_is_kept_only_if_they_overlap() -> None:
    truth = _truth([(100, 100, 110, 110)])
    _, positive, negative = boxes.match(_random(20).clamp(max=90), truth, 0.3, 0.7, keep_best=True)
    assert not positive.any() and negative.all()


def test_boxes_in_ignored_ones_are_neither() -> None:
    truth = _truth([(0, 0, 10, 10), (50, 50, 100, 100)], [(0, 0, 100, 100)], ignore=((0, 1),))
    # In the ignored box, more than half in it, less than half in it, on the true one.
    candidates = torch.tensor([[60.0, 60, 70, 70], [46, 60, 66, 80], [36, 60, 56, 80], [0, 0, 10, 10]])
    _, positive, negative = boxes.match(candidates, truth, 0.5, 0.5)
    assert positive[0].tolist() == [False, False, False, True]
    assert negative[0].tolist() == [False, False, True, False]
    assert negative[1].tolist() == [True] * 4


def test_sampling_takes_what_it_may() -> None:
    torch.manual_seed(0)
    positive = torch.zeros(3, 100, dtype=torch.bool)
    positive[0, :50], positive[1, :3] = True, True
    negative = ~positive
    negative[2] = False
    index, drawn = boxes.sample(positive, negative, 20, 0.25)
    assert drawn.sum(1).tolist() == [20, 20, 0]
    for n, most in ((0, 5), (1, 3)):
        found = index[n, drawn[n]]
        assert len(set(found.tolist())) == 20
        assert positive[n, found].sum() == most and (positive | negative)[n, found].all()
    # More than there is.
    index, drawn = boxes.sample(positive, negative, 300, 0.5)
    assert drawn.sum(1).tolist() == [100, 100, 0]
    # Nothing at all.
    index, drawn = boxes.sample(positive[:, :0], negative[:, :0], 20, 0.25)
    assert index.shape == drawn.shape == (3, 0)


def test_sampling_is_uniform_and_follows_the_seed() -> None:
    torch.manual_seed(0)
    positive = torch.zeros(1000, 8, dtype=torch.bool)
    index, drawn = boxes.sample(positive, ~positive, 2, 0.5)
    counts = torch.bincount(index[drawn], minlength=8)
    assert counts.sum() == 2000 and counts.min() > 200 and counts.max() < 300  # 250 ± 14.8
    torch.manual_seed(0)
    assert torch.equal(index, boxes.sample(positive, ~positive, 2, 0.5)[0])


def test_take() -> None:
    values = torch.arange(24.0).reshape(2, 3, 4)
    index = torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(boxes.take(values, index), torch.stack([values[0, [2, 0]], values[1, [1, 1]]]))
    assert torch.equal(boxes.take(values[..., 0], index), torch.stack([values[0, [2, 0], 0], values[1, [1, 1], 0]]))
