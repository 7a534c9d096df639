"""The results of a geometry study: what a folder holds, and the statistics the report is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pliant.studies.geometry.contestants import CONTESTANTS
from pliant.studies.geometry.protocol import STRENGTHS, TRAININGS
from pliant.studies.report import folders
from pliant.studies.report.statistics import Cell

ALL = "all transformed"  # the mean over every kind
UNSEEN = "unseen strengths"  # the mean over kinds of the strengths that augmentation does not cover

Value = Callable[[dict[str, Any]], float | None]


@dataclass(frozen=True)
class Results:
    """All finished runs of one profile.

    Args:
        folder: where they were read from.
        runs: one dictionary for each finished run.
        settings: the protocol; empty where settings.json is missing.
        notes: a sentence for everything that was left out.
    """

    folder: Path
    runs: list[dict[str, Any]]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def profile(self) -> str:
        return str(self.runs[0]["profile"])

    @property
    def contestants(self) -> list[str]:
        there = dict.fromkeys(run["contestant"] for run in self.runs)
        return [c for c in CONTESTANTS if c in there] + [c for c in there if c not in CONTESTANTS]

    @property
    def missing(self) -> list[str]:
        """Return "contestant (training)" for what a whole study has and this one has not."""
        there = {(run["contestant"], run["training"]) for run in self.runs}
        return [f"{c} ({t})" for c in CONTESTANTS for t in TRAININGS if (c, t) not in there]

    @property
    def trainings(self) -> list[str]:
        there = {run["training"] for run in self.runs}
        return [t for t in TRAININGS if t in there] + sorted(there - set(TRAININGS))

    @property
    def kinds(self) -> list[str]:
        there = dict.fromkeys(kind for run in self.runs for kind in run["accuracy"] if kind != "clean")
        return [k for k in STRENGTHS if k in there] + [k for k in there if k not in STRENGTHS]

    @property
    def columns(self) -> list[str]:
        """Return what the tables of accuracy have as columns."""
        unseen = any(self._unseen(kind) for kind in self.kinds)
        return ["clean", *self.kinds, ALL, *([UNSEEN] if unseen else [])]

    @property
    def seeds(self) -> list[int]:
        return sorted({int(run["seed"]) for run in self.runs})

    def label(self, contestant: str) -> str:
        return next(str(run["label"]) for run in self.runs if run["contestant"] == contestant)

    def cell(self, contestant: str, training: str | None, value: Value) -> Cell | None:
        """Return `value` of every run of a contestant (of both trainings where `training` is None)."""
        found: dict[int, float] = {}
        for number, run in enumerate(self.runs):
            if run["contestant"] == contestant and training in (None, run["training"]):
                got = value(run)
                if got is not None:
                    found[int(run["seed"]) if training is not None else number] = float(got)
        return Cell(found) if found else None

    def accuracy(self, contestant: str, training: str, column: str) -> Cell | None:
        """Return the accuracy in a column.

        A kind's is the mean over its strengths, `ALL` the mean over kinds, `UNSEEN` the mean over kinds of the
        strengths that augmentation does not cover.
        """
        return self.cell(contestant, training, lambda run: self._score(run, column))

    def at(self, contestant: str, training: str, kind: str, strength: str) -> Cell | None:
        """Return the accuracy at one strength of one kind."""
        return self.cell(contestant, training, lambda run: run["accuracy"].get(kind, {}).get(strength))

    def strengths(self, kind: str) -> list[str]:
        there = {s for run in self.runs for s in run["accuracy"].get(kind, {})}
        return sorted(there, key=float)

    def ranges(self, kind: str) -> tuple[float, float] | None:
        """Return from where the augmentation draws a kind; None where the settings do not say."""
        found = self.settings.get("trainings", {}).get("augmented", {}).get(kind)
        return (float(found[0]), float(found[1])) if found else None

    def best(self, contestants: Iterable[str], training: str, column: str) -> str | None:
        """Return the contestant of the highest mean; ties go to the first."""
        means = {c: cell.mean for c in contestants if (cell := self.accuracy(c, training, column)) is not None}
        return max(means, key=lambda c: means[c]) if means else None

    def _unseen(self, kind: str) -> list[str]:
        covered = self.ranges(kind)
        if covered is None:
            return []
        return [s for s in self.strengths(kind) if not covered[0] <= float(s) <= covered[1]]

    def _score(self, run: dict[str, Any], column: str) -> float | None:
        if column in (ALL, UNSEEN):
            wanted = {kind: self.strengths(kind) if column == ALL else self._unseen(kind) for kind in self.kinds}
            parts = [_mean(run["accuracy"].get(kind, {}), which) for kind, which in wanted.items() if which]
            found = [part for part in parts if part is not None]
            return sum(found) / len(found) if found and len(found) == len(parts) else None
        return _mean(run["accuracy"].get(column, {}), list(run["accuracy"].get(column, {})))


def _mean(scores: dict[str, float], strengths: list[str]) -> float | None:
    """Return the mean score of some strengths; None where one was not tested."""
    if not strengths or any(s not in scores for s in strengths):
        return None
    return sum(scores[s] for s in strengths) / len(strengths)


def deformable(contestant: str) -> bool:
    """Return whether a contestant has deformable layers; all others are controls."""
    return contestant.startswith("deform")


def network(contestant: str) -> bool:
    """Return whether a contestant is a network, and not hand-made features."""
    return contestant not in CONTESTANTS or CONTESTANTS[contestant].learned


def read(folder: Path) -> Results:
    """Read the results of a study.

    Raises:
        FileNotFoundError: there is no results.jsonl.
        ValueError: it holds no finished run.
    """

    def usable(run: dict[str, Any]) -> bool:
        return isinstance(run["accuracy"], dict) and isinstance(run["label"], str)

    return Results(folder, *folders.read(folder, "geometry", ("contestant", "training", "seed"), usable))
