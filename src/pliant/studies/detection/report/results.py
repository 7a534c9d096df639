"""The results of the detection study; the condition of a run is the data it was trained on."""

from __future__ import annotations

from typing import Any, ClassVar

from pliant.studies.detection.contestants import CONTESTANTS, QUICK
from pliant.studies.detection.protocol import DATA
from pliant.studies.detection.summary import COLUMNS
from pliant.studies.report import results
from pliant.studies.report.statistics import Cell

GROUPS = {
    "hand-made features": ("hog",),
    "controls": ("regular", "dilated-c5", "dilated-c3-c5"),
    "deformable, version 1": ("dconv-c5", "dconv-c3-c5", "dconv-c3-c5-dpool"),
    "modulated, version 2": ("mdconv-c3-c5", "mdconv-c3-c5-mdpool"),
    "with feature mimicking": ("full-mimic-fg", "full-mimic-bg", "full-mimic-both", "regular-mimic-fg"),
}


class Results(results.Results):
    """All finished runs of one profile."""

    study: ClassVar[str] = "detection"
    key: ClassVar[str] = "data"
    known_contestants: ClassVar[tuple[str, ...]] = tuple(CONTESTANTS)
    known_conditions: ClassVar[tuple[str, ...]] = DATA

    @staticmethod
    def usable(run: dict[str, Any]) -> bool:
        return all(column in run["scores"] for column in COLUMNS)

    @property
    def whole(self) -> list[tuple[str, str]]:
        if self.profile == "quick":
            return [(c, DATA[0]) for c in QUICK]
        return [(c, data) for data in DATA for c in CONTESTANTS]

    def score(self, contestant: str, condition: str, column: str) -> Cell | None:
        """Return an average precision."""
        return self.cell(contestant, condition, lambda run: run["scores"].get(column))

    def groups(self, data: str) -> list[tuple[str, list[str]]]:
        """Return the contestants that were run on some data, by kind."""
        there = {run["contestant"] for run in self.runs if run["data"] == data}
        known = {c for members in GROUPS.values() for c in members}
        every = {**GROUPS, "others": tuple(c for c in self.contestants if c not in known)}
        found = [(name, [c for c in members if c in there]) for name, members in every.items()]
        return [(name, members) for name, members in found if members]
