"""Batches of images with boxes: the same in every run, from any step on, with any number of processes."""

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
    """A data set of images with boxes: items are ``(image, target)``, where image is uint8 (3, H, W)."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Target]: ...

    def coco(self) -> dict[str, Any]:
        """Return the ground truth in COCO's form: images, annotations and categories."""
        ...


class Batch(NamedTuple):
    """Images of any sizes, their targets, and a sentence for every file that could not be read."""

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
    """Return this rank's batches of one epoch of training.

    The order of the images depends on `seed` and `epoch` alone; what is random in `transform` depends on these and on
    the image. A run that resumes at step `start` therefore sees what it would have seen, with any number of workers.
    Rank r gets the r-th of `world` equal parts of each batch: two ranks with half a batch each see what one rank would.
    The last len(dataset) mod batch images of the order are left out in this epoch.

    An image that cannot be read is replaced by the next one in the data set that can (the first one follows the last),
    so every rank does the same number of steps; `broken` reports each such file once per epoch.

    torch's global generator is neither read nor advanced.

    Args:
        dataset: see :class:`Detection`.
        batch: images per step, over all ranks.
        seed: of the order and of the transform.
        epoch: number of the epoch; each has an order of its own.
        transform: applied to every image, with a generator of its own.
        workers: processes that read images; with 0 this process reads them.
        rank: number of this process, from 0.
        world: number of processes.
        start: steps of the epoch to skip.
        context: how workers are started: "fork", "spawn" or "forkserver"; None is torch's choice.
        worker_init: called first in every worker, with the worker's number.

    Raises:
        ValueError: the ranks cannot share the batch equally, the data cannot fill it, or no image can be read.

    >>> from pliant.data import Composed
    >>> images, targets, broken = next(batches(Composed(seed=0, count=8), batch=4, seed=0, epoch=0))
    >>> len(images), len(targets), broken
    (4, 4, [])
    """
    if world < 1 or not 0 <= rank < world or batch < 1 or batch % world:
        raise ValueError(f"batches: a batch of {batch} cannot be shared equally by {world} processes (rank {rank})")
    steps = len(dataset) // batch
    if not steps:
        raise ValueError(f"batches: a batch of {batch} is larger than the data set of {len(dataset)} images")
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
    """The images of an epoch, transformed; one that cannot be read is replaced by the next one that can."""

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
        raise ValueError(f"batches: none of the {len(self)} images can be read: {broken[0]}")


def _collate(items: list[tuple[Tensor, Target, list[str]]]) -> Batch:
    images, targets, broken = zip(*items, strict=True)
    return Batch(list(images), list(targets), [sentence for part in broken for sentence in part])
