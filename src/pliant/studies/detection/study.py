"""The detection study as the runner sees it: its tasks, its data, its settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pliant.data import FashionMNIST
from pliant.studies import runner
from pliant.studies.detection import pretraining
from pliant.studies.detection.contestants import CONTESTANTS
from pliant.studies.detection.protocol import DATA, Images, Protocol, Task
from pliant.studies.detection.single import run_one
from pliant.studies.runner import Tell


@dataclass(frozen=True)
class Study(runner.Study):
    """A detection study to run.

    Args:
        protocol, out, seeds, contestants, jobs, device: as of every study.
        data: some of "composed" and "crowns".
    """

    title: ClassVar[str] = "detection"
    everyone: ClassVar[tuple[str, ...]] = tuple(CONTESTANTS)
    task: ClassVar[type[Task]] = Task

    protocol: Protocol
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    data: tuple[str, ...] = DATA

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data or not set(self.data) <= set(DATA):
            raise ValueError(f"detection: data must be some of {', '.join(DATA)}, got {', '.join(self.data) or 'none'}")
        if self.protocol.train < self.protocol.recipe.batch:
            raise ValueError(
                f"detection: {self.protocol.train} training scenes are less than one batch of "
                f"{self.protocol.recipe.batch}"
            )

    @property
    def conditions(self) -> tuple[str, ...]:
        """Return the data that are trained on, in one order whatever was asked for."""
        return tuple(data for data in DATA if data in self.data)

    def load(self) -> Images:
        """Return the images, drawn when they are asked for."""
        return Images(self.protocol)

    def settings(self, data: Images) -> dict[str, Any]:
        """Return what settings.json holds."""
        clothes = {"clothes": FashionMNIST.load().digest, "pretraining": asdict(pretraining.RECIPE)}
        return {**self.protocol.settings(), **clothes, **self.here()}

    def run_one(self, task: Task, data: Images, path: Path, tell: Tell) -> dict[str, Any]:
        """Return the result of one run, and write the weights of a network to `path`."""
        return run_one(task, self.protocol, data, self.device, path, tell)
