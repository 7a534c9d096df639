"""The geometry study as the runner sees it: its tasks, its data, its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pliant.data import FashionMNIST
from pliant.studies import runner
from pliant.studies.geometry.contestants import CONTESTANTS
from pliant.studies.geometry.protocol import TRAININGS, Protocol, Task
from pliant.studies.geometry.single import run_one
from pliant.studies.runner import Tell


@dataclass(frozen=True)
class Study(runner.Study):
    """A geometry study to run.

    Args:
        protocol, out, seeds, contestants, jobs, device: as of every study.
        data: folder of the full IDX files; None takes the subset of the package.
    """

    title: ClassVar[str] = "geometry"
    everyone: ClassVar[tuple[str, ...]] = tuple(CONTESTANTS)
    task: ClassVar[type[Task]] = Task

    protocol: Protocol
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    data: Path | None = None

    @property
    def conditions(self) -> tuple[str, ...]:
        """Return the trainings."""
        return tuple(TRAININGS)

    def load(self) -> FashionMNIST:
        """Return as many images as the protocol takes."""
        data = FashionMNIST.load(self.data)
        train = len(data.train) if self.protocol.train is None else self.protocol.train
        test = len(data.test) if self.protocol.test is None else self.protocol.test
        if train < self.protocol.recipe.batch:
            raise ValueError(
                f"geometry: {train} training images are less than one batch of {self.protocol.recipe.batch}"
            )
        return FashionMNIST(data.train.first(train), data.test.first(test), data.source)

    def settings(self, data: FashionMNIST) -> dict[str, Any]:
        """Return what settings.json holds."""
        return {
            **self.protocol.settings(),
            "data": {
                "name": "Fashion-MNIST",
                "source": data.source,
                "train": len(data.train),
                "test": len(data.test),
                "sha256": data.digest,
            },
            **self.here(),
        }

    def run_one(self, task: Task, data: FashionMNIST, path: Path, tell: Tell) -> dict[str, Any]:
        """Return the result of one run, and write the weights of a network to `path`."""
        return run_one(task, self.protocol, data, self.device, path, tell)
