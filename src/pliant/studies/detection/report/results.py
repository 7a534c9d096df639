"""The results of a detection study: what a folder holds, and the statistics the report is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pliant.studies.detection.contestants import CONTESTANTS, QUICK
from pliant.studies.detection.protocol import DATA
from pliant.studies.detection.summary import COLUMNS
from pliant.studies.report import folders
from pliant.studies.report.statistics import Cell, Difference, difference

GROUPS = {
    "hand-made features": ("hog",),
    "controls": ("regular", "dilated-c5", "dilated-c3-c5"),
    "deformable, version 1": ("dconv-c5", "dconv-c3-c5", "dconv-c3-c5-dpool"),
    "modulated, version 2": ("mdconv-c3-c5", "mdconv-c3-c5-mdpool"),
    "with feature mimicking": ("full-mimic-fg", "full-mimic-bg", "full-mimic-both", "regular-mimic-fg"),
}
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
    def data(self) -> list[str]:
        there = dict.fromkeys(run["data"] for run in self.runs)
        return [d for d in DATA if d in there] + [d for d in there if d not in DATA]

    @property
    def seeds(self) -> list[int]:
        return sorted({int(run["seed"]) for run in self.runs})

    @property
    def missing(self) -> list[str]:
        """Return "contestant (data)" for what the whole study of this profile has and this one has not."""
        there = {(run["contestant"], run["data"]) for run in self.runs}
        whole = [(c, d) for d in DATA for c in CONTESTANTS]
        if self.profile == "quick":
            whole = [(c, DATA[0]) for c in QUICK]
        return [f"{c} ({d})" for c, d in whole if (c, d) not in there]

    def groups(self, data: str) -> list[tuple[str, list[str]]]:
        """Return the contestants that were run on some pictures, by kind."""
        there = {run["contestant"] for run in self.runs if run["data"] == data}
        known = {c for members in GROUPS.values() for c in members}
        every = {**GROUPS, "others": tuple(c for c in self.contestants if c not in known)}
        found = [(name, [c for c in members if c in there]) for name, members in every.items()]
        return [(name, members) for name, members in found if members]

    def label(self, contestant: str) -> str:
        return next(str(run["label"]) for run in self.runs if run["contestant"] == contestant)

    def of(self, contestant: str, data: str) -> list[dict[str, Any]]:
        """Return the runs of a contestant on some pictures."""
        return [run for run in self.runs if (run["contestant"], run["data"]) == (contestant, data)]

    def cell(self, contestant: str, data: str, value: Value) -> Cell | None:
        """Return `value` of every run of a contestant on some pictures."""
        values = {int(run["seed"]): value(run) for run in self.of(contestant, data)}
        found = {seed: float(v) for seed, v in values.items() if v is not None}
        return Cell(found) if found else None

    def score(self, contestant: str, data: str, column: str) -> Cell | None:
        """Return an average precision."""
        return self.cell(contestant, data, lambda run: run["scores"].get(column))

    def against(self, ours: str, theirs: str, data: str, column: str) -> Difference | None:
        """Return ours − theirs in a column, seed by seed; None where they have no seed in common."""
        cells = self.score(ours, data, column), self.score(theirs, data, column)
        return difference(cells[0], cells[1]) if cells[0] is not None and cells[1] is not None else None

    def best(self, contestants: Iterable[str], data: str, column: str) -> str | None:
        """Return the contestant of the highest mean; ties go to the first."""
        means = {c: cell.mean for c in contestants if (cell := self.score(c, data, column)) is not None}
        return max(means, key=lambda c: means[c]) if means else None


def read(folder: Path) -> Results:
    """Read the results of a study.

    Raises:
        FileNotFoundError: there is no results.jsonl.
        ValueError: it holds no finished run.
    """

    def usable(run: dict[str, Any]) -> bool:
        return set(COLUMNS) <= run["scores"].keys() and isinstance(run["label"], str)

    return Results(folder, *folders.read(folder, "detection", ("contestant", "data", "seed"), usable))
