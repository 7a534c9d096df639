"""Batches of pictures with boxes: the same in every run, from any step on, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pliant.data.coco import Target
from pliant.data.drawing import one_thread, seed_of

Transform = Callable[[Tensor, Target, torch.Generator], tuple[Tensor, Target]]


class Detection(Protocol):
    """Pictures with boxes: items are ``(image uint8 (3, H, W), target)``; and their ground truth in COCO's form."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Target]: ...

    def coco(self) -> dict[str, Any]:
        """Return images, annotations and categories."""
        ...


class Batch(NamedTuple):
    """Pictures of any sizes, their targets, and a sentence for every file that could not be read."""

    images: list[Tensor]
    targets: list[Target]
    broken: list[str]


def batches(
    dataset: Detection,
    batch: int,
    seed: int,
    epoch: int,
    *,
    transform: Transform | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    context: str | None = None,
    worker_init: Callable[[int], None] | None = None,
) -> Iterator[Batch]:
    """Return the batches of one epoch of training that are this rank's.

    The order of the pictures depends on `seed` and `epoch` alone, and what is random in `transform` on these and the
    picture: a run that goes on at step `start` sees what it would have seen, whatever the workers. Of each batch the
    r-th of `world` equal parts is rank r's: two ranks with half of the batch each see what one rank would. The
    len(dataset) mod batch last pictures of the order are left out in this epoch.

    In the place of a picture that cannot be read comes the next one of the data set that can (after the last one the
    first), so every rank does the same number of steps; `broken` says so, once an epoch for each file.

    torch's global generator is neither read nor moved.

    Args:
        dataset: see :class:`Detection`.
        batch: pictures of a step, of all ranks together.
        seed: of the order and of the transform.
        epoch: which one; any two have orders of their own.
        transform: of every picture, with a generator of its own.
        workers: processes that read pictures; 0 reads in this one.
        rank: which process this is, from 0.
        world: how many there are.
        start: steps of the epoch to leave out.
        context: how workers are started: "fork", "spawn" or "forkserver"; None is torch's choice.
        worker_init: called first in every worker with its number.

    Raises:
        ValueError: a batch that the ranks cannot share or the data cannot fill; not one picture can be read.

    >>> from pliant.data import Composed
    >>> images, targets, broken = next(batches(Composed(seed=0, count=8), batch=4, seed=0, epoch=0))
    >>> len(images), len(targets), broken
    (4, 4, [])
    """
    if world < 1 or not 0 <= rank < world or batch < 1 or batch % world:
        raise ValueError(f"batches: a batch of {batch} cannot be shared by {world} processes alike (rank {rank})")
    steps = len(dataset) // batch
    if not steps:
        raise ValueError(f"batches: a batch of {batch} is more than the {len(dataset)} pictures there are")
    if not 0 <= start <= steps:
        raise ValueError(f"batches: start must be a step from 0 to {steps}, got {start}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed_of("order", seed, epoch)))
    share = batch // world
    # (steps, ranks, share): this rank's part of every step.
    mine = order[: steps * batch].view(steps, world, share)[start:, rank].tolist()
    return _named_once(
        DataLoader(
            _Drawn(dataset, transform, seed, epoch),
            batch_sampler=mine,
            num_workers=workers,
            collate_fn=_collate,
            # The loader would draw the seed of its workers from torch's generator.
            generator=torch.Generator(),
            multiprocessing_context=context if workers else None,
            worker_init_fn=worker_init,
        )
    )


def _named_once(loader: DataLoader[Any]) -> Iterator[Batch]:
    named: set[str] = set()
    for images, targets, broken in loader:
        new = [sentence for sentence in dict.fromkeys(broken) if sentence not in named]
        named.update(new)
        yield Batch(images, targets, new)


class _Drawn(Dataset[tuple[Tensor, Target, list[str]]]):
    """Pictures of an epoch, transformed; in the place of one that cannot be read the next one that can."""

    def __init__(self, dataset: Detection, transform: Transform | None, seed: int, epoch: int) -> None:
        self.dataset, self.transform, self.seed, self.epoch = dataset, transform, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    @one_thread()
    def __getitem__(self, index: int) -> tuple[Tensor, Target, list[str]]:
        broken: list[str] = []
        for at in range(len(self)):
            try:
                image, target = self.dataset[(index + at) % len(self)]
            except OSError as error:
                broken.append(str(error))
                continue
            if self.transform is not None:
                random = torch.Generator().manual_seed(seed_of("picture", self.seed, self.epoch, index))
                image, target = self.transform(image, target, random)
            return image, target, broken
        raise ValueError(f"batches: not one of {len(self)} pictures can be read: {broken[0]}")


def _collate(items: list[tuple[Tensor, Target, list[str]]]) -> Batch:
    images, targets, broken = zip(*items, strict=True)
    return Batch(list(images), list(targets), [sentence for part in broken for sentence in part])
