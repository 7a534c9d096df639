"""The results of a study: what its folder holds, whatever its state, and the statistics the report is made of."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pliant.studies.report.statistics import Cell, Difference, difference

Value = Callable[[dict[str, Any]], float | None]
R = TypeVar("R", bound="Results")


@dataclass(frozen=True)
class Results(ABC):
    """All finished runs of one profile; contestant, condition (what a run was trained on) and seed identify a run.

    Args:
        folder: where they were read from.
        runs: one dictionary for each finished run.
        settings: the protocol; empty where settings.json is missing.
        notes: one sentence for everything that was left out.
    """

    study: ClassVar[str]  # its name on the command line
    key: ClassVar[str]  # of the condition in a run
    known_contestants: ClassVar[Sequence[str]]  # in the order of the report
    known_conditions: ClassVar[Sequence[str]]

    folder: Path
    runs: list[dict[str, Any]]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls: type[R], folder: Path) -> R:
        """Read the results of a study; of two runs of one contestant, condition and seed the later counts.

        Raises:
            FileNotFoundError: there is no results.jsonl.
            ValueError: it holds no finished run.
        """
        path = folder / "results.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"report: {path} is missing; run `pliant study {cls.study}` with this folder first")
        notes: list[str] = []
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            try:
                run = json.loads(line)
                name = tuple(str(run[k]) for k in ("contestant", cls.key, "seed", "profile"))
                whole = isinstance(run["label"], str) and cls.usable(run)
            except (ValueError, KeyError, TypeError, RecursionError):
                whole = False
            if not whole:
                notes.append(f"Line {number} of results.jsonl is half-written or damaged and was left out.")
                continue
            found[name] = run
        if not found:
            raise ValueError(
                f"report: {path} holds no finished run yet; `pliant study {cls.study}` resumes where it stopped"
            )
        settings = _settings(folder, notes)
        profiles = {name[-1] for name in found}
        profile = settings.get("profile") if settings.get("profile") in profiles else sorted(profiles)[0]
        for other in sorted(profiles - {profile}):
            count = sum(name[-1] == other for name in found)
            runs_lie = "1 run of the {} profile lies" if count == 1 else f"{count} runs of the {{}} profile lie"
            notes.append(f"{runs_lie.format(other)} in the same folder and {'was' if count == 1 else 'were'} left out.")
        return cls(folder, [run for name, run in found.items() if name[-1] == profile], settings, notes)

    @staticmethod
    @abstractmethod
    def usable(run: dict[str, Any]) -> bool:
        """Return whether a run holds what the report needs; a KeyError or TypeError means no."""

    @property
    @abstractmethod
    def whole(self) -> list[tuple[str, str]]:
        """Return the (contestant, condition) pairs of a whole study of this profile."""

    @abstractmethod
    def score(self, contestant: str, condition: str, column: str) -> Cell | None:
        """Return what a column of the report's main table shows, by seed."""

    @property
    def profile(self) -> str:
        return str(self.runs[0]["profile"])

    @property
    def contestants(self) -> list[str]:
        return _ordered((run["contestant"] for run in self.runs), self.known_contestants)

    @property
    def conditions(self) -> list[str]:
        return _ordered((run[self.key] for run in self.runs), self.known_conditions)

    @property
    def seeds(self) -> list[int]:
        return sorted({int(run["seed"]) for run in self.runs})

    @property
    def over_seeds(self) -> str:
        """Return how a caption says what stands in a cell: with one seed there is neither a mean nor a deviation."""
        return ", mean ± standard deviation over seeds" if len(self.seeds) > 1 else ""

    def counted(self, count: int) -> list[str]:
        """Return the cell that says how many seeds a row has, where there are several."""
        return [str(count)] if len(self.seeds) > 1 else []

    @property
    def missing(self) -> list[str]:
        """Return "contestant (condition)" for what a whole study has and this one lacks."""
        there = {(run["contestant"], run[self.key]) for run in self.runs}
        return [f"{contestant} ({of})" for contestant, of in self.whole if (contestant, of) not in there]

    def label(self, contestant: str) -> str:
        return next(str(run["label"]) for run in self.runs if run["contestant"] == contestant)

    def of(self, contestant: str, condition: str | None = None) -> list[dict[str, Any]]:
        """Return the runs of a contestant under a condition, or under all."""
        return [r for r in self.runs if r["contestant"] == contestant and condition in (None, r[self.key])]

    def cell(self, contestant: str, condition: str | None, value: Value) -> Cell | None:
        """Return `value` of every run of a contestant: by seed, or of all conditions, where it is None, by number."""
        found: dict[int, float] = {}
        for number, run in enumerate(self.of(contestant, condition)):
            got = value(run)
            if got is not None:
                found[number if condition is None else int(run["seed"])] = float(got)
        return Cell(found) if found else None

    def against(self, ours: str, theirs: str, condition: str, column: str) -> Difference | None:
        """Return ours − theirs in a column, paired by seed; None where they have no seed in common."""
        cells = self.score(ours, condition, column), self.score(theirs, condition, column)
        return difference(cells[0], cells[1]) if cells[0] is not None and cells[1] is not None else None

    def best(self, contestants: Iterable[str], condition: str, column: str) -> str | None:
        """Return the contestant of the highest mean; ties go to the first."""
        means = {c: cell.mean for c in contestants if (cell := self.score(c, condition, column)) is not None}
        return max(means, key=lambda c: means[c]) if means else None

    def growth(self) -> tuple[int, int, int]:
        """Count the trained layers whose effective dilation grows with the object's size, or shrinks, and all layers.

        It grows or shrinks where the interval of Spearman's ρ excludes 0 in every seed.
        """
        seen: dict[tuple[str, str, str], list[dict[str, float]]] = {}
        for run in self.runs:
            for layer, found in (run.get("spearman") or {}).items():
                seen.setdefault((run["contestant"], run[self.key], layer), []).append(found)
        up = sum(all(r["low"] > 0 for r in runs) for runs in seen.values())
        down = sum(all(r["high"] < 0 for r in runs) for runs in seen.values())
        return up, down, len(seen)


def _settings(folder: Path, notes: list[str]) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            return settings
        notes.append("settings.json is damaged: the protocol and the machine are not known.")
    except FileNotFoundError:
        notes.append("There is no settings.json: the protocol and the machine are not known.")
    except (ValueError, RecursionError):
        notes.append("settings.json is damaged: the protocol and the machine are not known.")
    return {}


def _ordered(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return each name once: the known ones in their order, then the others as they come."""
    there = dict.fromkeys(names)
    return [name for name in known if name in there] + [name for name in there if name not in known]
