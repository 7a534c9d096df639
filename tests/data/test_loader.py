from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.data import BrokenImage, Chain, ColourJitter, Composed, Flip, batches


class Numbers:
    """Images of one pixel whose value is their index; some are broken."""

    classes = ("number",)
    category_ids = (1,)

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        if index in self.broken:
            raise BrokenImage(f"{index}.png cannot be read")
        target = {
            "boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
            "labels": torch.zeros(1, dtype=torch.int64),
            "ignore": torch.zeros(1, dtype=torch.bool),
            "image_id": index,
        }
        return torch.full((3, 1, 1), index, dtype=torch.uint8), target


def _noise(image: Tensor, target: dict, generator: torch.Generator) -> tuple[Tensor, dict]:
    return image, {**target, "drawn": torch.rand((), generator=generator).item()}


def _flat(parts: Iterable[list[int]]) -> list[int]:
    return [number for part in parts for number in part]


def _seen(*arguments: Any, **options: Any) -> list[list[int]]:
    return [[t["image_id"] for t in targets] for _, targets, _ in batches(*arguments, **options)]


def test_every_picture_once_in_an_order_of_seed_and_epoch() -> None:
    data = Numbers(12)
    seen = _seen(data, 4, 0, 0)
    assert [len(part) for part in seen] == [4, 4, 4]
    assert sorted(_flat(seen)) == list(range(12))
    torch.manual_seed(5)
    assert _seen(data, 4, 0, 0) == seen
    assert _flat(_seen(data, 6, 0, 0)) == _flat(seen)
    assert _seen(data, 4, 0, 1) != seen and _seen(data, 4, 1, 0) != seen


def test_what_does_not_fill_a_batch_is_left_out() -> None:
    assert [len(part) for part in _seen(Numbers(11), 4, 0, 0)] == [4, 4]


def test_start_goes_on_where_it_stopped() -> None:
    whole = list(batches(Numbers(20), 4, 0, 3, transform=_noise))
    for start in range(6):
        rest = list(batches(Numbers(20), 4, 0, 3, transform=_noise, start=start))
        for field in ("image_id", "drawn"):
            seen, expected = ([[t[field] for t in part.targets] for part in parts] for parts in (rest, whole[start:]))
            assert seen == expected
        assert len(rest) == 5 - start


def test_two_ranks_see_what_one_sees() -> None:
    one = _seen(Numbers(24), 8, 0, 0)
    for world in (2, 4):
        parts = [_seen(Numbers(24), 8, 0, 0, rank=rank, world=world) for rank in range(world)]
        assert [_flat(shares) for shares in zip(*parts, strict=True)] == one


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches(Numbers(8), 4, 0, 0, transform=_noise))
    list(batches(Numbers(8), 4, 0, 0, transform=_noise, workers=1, context="fork"))
    assert torch.equal(torch.get_rng_state(), before)


def test_broken_pictures_are_replaced_by_the_next_and_named_once() -> None:
    data, whole = Numbers(12, broken=(3, 4, 11)), Numbers(12)
    mended = {3: 5, 4: 5, 11: 0}
    expected = [[mended.get(i, i) for i in part] for part in _seen(whole, 4, 0, 0)]
    assert _seen(data, 4, 0, 0) == expected
    named = [sentence for _, _, broken in batches(data, 4, 0, 0) for sentence in broken]
    assert sorted(named) == ["11.png cannot be read", "3.png cannot be read", "4.png cannot be read"]
    # Random numbers belong to the place in the batch, not to the image that fills it.
    for a, b in zip(batches(data, 4, 0, 0, transform=_noise), batches(whole, 4, 0, 0, transform=_noise), strict=True):
        assert [t["drawn"] for t in a.targets] == [t["drawn"] for t in b.targets]
    halves = [_seen(data, 4, 0, 0, rank=rank, world=2) for rank in (0, 1)]
    assert [_flat(shares) for shares in zip(*halves, strict=True)] == expected


def test_no_readable_picture() -> None:
    with pytest.raises(ValueError, match=r"none of the 4 images can be read: \d.png cannot be read"):
        list(batches(Numbers(4, broken=(0, 1, 2, 3)), 2, 0, 0))


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_change_nothing(context: str) -> None:
    scenes = Composed(0, 8)
    transform = Chain(Flip(), ColourJitter(0.3, 0.3, 0.3))
    alone = list(batches(scenes, 4, 0, 0, transform=transform))
    # spawn starts Python and imports torch in every worker, so one is enough.
    workers = 2 if context == "fork" else 1
    others = list(batches(scenes, 4, 0, 0, transform=transform, workers=workers, context=context))
    for a, b in zip(alone, others, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
        assert all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a.targets, b.targets, strict=True))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch": 3, "world": 2}, "a batch of 3 cannot be shared equally by 2 processes"),
        ({"batch": 0}, "a batch of 0"),
        ({"batch": 4, "rank": 1}, r"\(rank 1\)"),
        ({"batch": 13}, "larger than the data set of 12 images"),
        ({"batch": 4, "start": 4}, "a step from 0 to 3, got 4"),
    ],
)
def test_errors(arguments: dict[str, int], sentence: str) -> None:
    batch = arguments.pop("batch")
    with pytest.raises(ValueError, match=sentence):
        batches(Numbers(12), batch, 0, 0, **arguments)
