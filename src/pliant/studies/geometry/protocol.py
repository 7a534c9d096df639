"""The protocol of the geometry study: what is trained on, for how long, and what is tested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pliant.data import Ranges, Split, draw, drawing, render
from pliant.studies import runner
from pliant.train import Recipe

# Upright objects in a narrow range of scales, without and with augmentation. Both are drawn anew in every epoch.
TRAININGS = {
    "upright": Ranges(scale=(0.9, 1.1), shift=4.0),
    "augmented": Ranges((0.7, 1.4), (0.0, 30.0), (1.0, 1.5), (0.0, 0.2), (0.0, 0.1), 4.0),
}

# Every test draws upright objects and transforms them by exactly one strength of one kind.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "scale": (0.5, 0.7, 1.4, 2.0),
    "rotation": (15, 30, 60, 90),
    "aspect": (1.25, 1.5, 2.0),
    "shear": (0.2, 0.4, 0.6),
    "bend": (0.05, 0.1, 0.15),
}

TEST_SEED = 10_000  # the tests' poses: the same for every contestant and seed


@dataclass(frozen=True)
class Task(runner.Task):
    """One run: a contestant, its training and a seed."""

    contestant: str
    training: str
    seed: int


@dataclass(frozen=True)
class Protocol:
    """What all runs of a study share.

    Args:
        profile: "quick" or "full".
        recipe: how networks are trained.
        train, test: images to train and test on, at most; None takes all.
    """

    profile: str
    recipe: Recipe
    train: int | None = None
    test: int | None = None

    @classmethod
    def of(cls, profile: str) -> Protocol:
        """Return the protocol of a profile."""
        # Fewer test images: the quick profile should take five minutes on two cores, and half of that would be testing.
        sizes = {"quick": (3, 250), "full": (14, None)}
        if profile not in sizes:
            raise ValueError(f"geometry: the profile must be one of {tuple(sizes)}, got {profile!r}")
        epochs, test = sizes[profile]
        # The papers multiply the learning rate of version 2's branches by 0.1 to fine-tune trained networks. Here they
        # are trained from scratch, and would hardly move in so few epochs.
        return cls(profile, Recipe(epochs, batch=32, lr=3e-3, offset_lr_mult=1.0), test=test)

    def settings(self) -> dict[str, Any]:
        """Return all that determines the results, except data and software, ready for JSON."""
        return {
            "study": "geometry",
            "profile": self.profile,
            "epochs": self.recipe.epochs,
            "optimiser": {"name": "AdamW, linear warm-up, cosine to 0", **asdict(self.recipe)},
            "canvas": drawing.CANVAS,
            "trainings": {name: asdict(ranges) for name, ranges in TRAININGS.items()},
            "strengths": STRENGTHS,
            "inside": {kind: [s for s in strengths if inside(kind, s)] for kind, strengths in STRENGTHS.items()},
            "test_seed": TEST_SEED,
        }


def inside(kind: str, strength: float) -> bool:
    """Return whether the augmentation covers a strength."""
    least, most = getattr(TRAININGS["augmented"], kind)
    return bool(least <= strength <= most)


def examinations() -> Iterator[tuple[str, str, Ranges]]:
    """Return every test as (kind, strength, ranges), "clean" of strength "0" first."""
    upright = TRAININGS["upright"]
    yield "clean", "0", upright
    for kind, strengths in STRENGTHS.items():
        for strength in strengths:
            exactly: dict[str, Any] = {kind: (float(strength), float(strength))}
            yield kind, f"{strength:g}", replace(upright, **exactly)


def epoch(split: Split, training: str, batch: int, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of one epoch in random order, newly drawn; the last, smaller batch is left out."""
    order = torch.randperm(len(split), generator=random)
    for start in range(0, len(split) - batch + 1, batch):
        chosen = order[start : start + batch]
        poses = draw(TRAININGS[training], batch, random)
        yield render(split.pictures[chosen], poses), split.labels[chosen]


def exam(split: Split, ranges: Ranges, batch: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of one test: the same images in the same poses at every call."""
    random = torch.Generator().manual_seed(TEST_SEED)
    for start in range(0, len(split), batch):
        part = Split(split.pictures[start : start + batch], split.labels[start : start + batch])
        yield render(part.pictures, draw(ranges, len(part), random)), part.labels
