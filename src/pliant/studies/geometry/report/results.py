"""The results of the geometry study; the condition of a run is its training."""

from __future__ import annotations

from typing import Any, ClassVar

from pliant.studies.geometry.contestants import CONTESTANTS
from pliant.studies.geometry.protocol import STRENGTHS, TRAININGS
from pliant.studies.report import results
from pliant.studies.report.statistics import Cell

ALL = "all transformed"  # the mean over every kind
UNSEEN = "unseen strengths"  # the mean over kinds of the strengths that augmentation does not cover


class Results(results.Results):
    """All finished runs of one profile."""

    study: ClassVar[str] = "geometry"
    key: ClassVar[str] = "training"
    known_contestants: ClassVar[tuple[str, ...]] = tuple(CONTESTANTS)
    known_conditions: ClassVar[tuple[str, ...]] = tuple(TRAININGS)

    @staticmethod
    def usable(run: dict[str, Any]) -> bool:
        return isinstance(run["accuracy"], dict)

    @property
    def whole(self) -> list[tuple[str, str]]:
        return [(c, training) for c in CONTESTANTS for training in TRAININGS]

    @property
    def kinds(self) -> list[str]:
        there = dict.fromkeys(kind for run in self.runs for kind in run["accuracy"] if kind != "clean")
        return [k for k in STRENGTHS if k in there] + [k for k in there if k not in STRENGTHS]

    @property
    def columns(self) -> list[str]:
        """Return what the tables of accuracy have as columns."""
        unseen = any(self._unseen(kind) for kind in self.kinds)
        return ["clean", *self.kinds, ALL, *([UNSEEN] if unseen else [])]

    def score(self, contestant: str, condition: str, column: str) -> Cell | None:
        """Return the accuracy in a column.

        A kind's is the mean over its strengths, `ALL` the mean over kinds, `UNSEEN` the mean over kinds of the
        strengths that augmentation does not cover.
        """
        return self.cell(contestant, condition, lambda run: self._accuracy(run, column))

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

    def _unseen(self, kind: str) -> list[str]:
        covered = self.ranges(kind)
        if covered is None:
            return []
        return [s for s in self.strengths(kind) if not covered[0] <= float(s) <= covered[1]]

    def _accuracy(self, run: dict[str, Any], column: str) -> float | None:
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
