"""The results of a geometry study: what a folder holds, and the statistics the report is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pliant.studies.geometry.contestants import CONTESTANTS
from pliant.studies.geometry.protocol import STRENGTHS, TRAININGS
from pliant.studies.geometry.summary import compare

ALL = "all transformed"  # the mean over every kind
UNSEEN = "unseen strengths"  # the mean over kinds of the strengths that augmentation does not cover

Value = Callable[[dict[str, Any]], float | None]


@dataclass(frozen=True)
class Cell:
    """A measured value: mean and standard deviation over seeds (NaN for one seed), and the values by seed."""

    by_seed: dict[int, float]

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        return sum(self.by_seed.values()) / self.n

    @property
    def sd(self) -> float:
        if self.n < 2:
            return math.nan
        return math.sqrt(sum((v - self.mean) ** 2 for v in self.by_seed.values()) / (self.n - 1))


@dataclass(frozen=True)
class Difference:
    """Mean of a paired difference over the seeds that both have, and its 95 % t interval (NaN for one seed)."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> int:
        """1 or −1 where the interval excludes 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def difference(ours: Cell, theirs: Cell) -> Difference | None:
    """Return ours − theirs, seed by seed; None where they share no seed."""
    seeds = sorted(ours.by_seed.keys() & theirs.by_seed.keys())
    if not seeds:
        return None
    mean, half = compare([ours.by_seed[s] for s in seeds], [theirs.by_seed[s] for s in seeds])
    half = half if math.isfinite(half) else math.nan
    return Difference(mean, mean - half, mean + half, len(seeds))


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
    path = folder / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"report: {path} is missing; run `pliant study geometry` with this folder first")
    notes: list[str] = []
    found: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
            key = (str(run["contestant"]), str(run["training"]), int(run["seed"]), str(run["profile"]))
            usable = isinstance(run["accuracy"], dict) and isinstance(run["label"], str)
        except (ValueError, KeyError, TypeError):
            usable = False
        if not usable:
            notes.append(f"Line {number} of results.jsonl is half-written or damaged and was left out.")
            continue
        found[key] = run
    if not found:
        raise ValueError(f"report: {path} holds no finished run yet; `pliant study geometry` resumes where it stopped")

    settings: dict[str, Any] = {}
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append("There is no settings.json: the protocol and the machine are not known.")
    except ValueError:
        notes.append("settings.json is damaged: the protocol and the machine are not known.")
    profiles = {key[3] for key in found}
    profile = settings.get("profile") if settings.get("profile") in profiles else sorted(profiles)[0]
    for other in sorted(profiles - {profile}):
        count = sum(key[3] == other for key in found)
        runs_lie = "1 run of the {} profile lies" if count == 1 else f"{count} runs of the {{}} profile lie"
        notes.append(f"{runs_lie.format(other)} in the same folder and {'was' if count == 1 else 'were'} left out.")
    runs = [run for key, run in found.items() if key[3] == profile]
    return Results(folder, runs, settings, notes)
