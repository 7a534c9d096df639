"""Results on disk: one line per finished run, valid after every crash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pliant._files import replacing, sweep

# Settings that may change when a study is resumed: it may move to another machine.
LOCAL = ("machine", "started")


class Store:
    """The folder of a study: settings.json, results.jsonl and models/.

    Args:
        title: of the study, for errors.
        folder: made when missing.
        settings: the protocol; a folder that holds another one is refused.
        task_of: returns the task of a result.

    Attributes:
        results: of finished runs, in the order of the file.
        notes: one sentence for everything unusual that was found.

    Raises:
        ValueError: the folder holds results of other settings, or a damaged file.
    """

    def __init__(
        self, title: str, folder: Path, settings: dict[str, Any], task_of: Callable[[dict[str, Any]], Any]
    ) -> None:
        self.title = title
        self.folder = folder
        self.task_of = task_of
        self.path = folder / "results.jsonl"
        self.notes: list[str] = []
        self.results: list[dict[str, Any]] = []
        (folder / "models").mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / "models"):
            sweep(place)
        self._agree(settings)
        if self.path.exists():
            self._read()

    @property
    def finished(self) -> set[Any]:
        """Return the runs that need not be repeated."""
        return set(map(self.task_of, self.results))

    def model(self, task: Any) -> Path:
        """Return where the weights of a run are."""
        return weights(self.folder, task)

    def append(self, result: dict[str, Any]) -> None:
        """Append the result of one run as a whole line, which is on the disk when this returns.

        Raises:
            OSError: it could not be written; the file is then as it was before.
        """
        line = (json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n").encode()
        before = self.path.stat().st_size if self.path.exists() else 0
        with self.path.open("ab", buffering=0) as file:
            try:
                _write(file.fileno(), line)
            except OSError:
                os.truncate(self.path, before)
                raise
        self.results.append(result)

    def _agree(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if not path.exists():
            if self.path.exists() and self.path.stat().st_size:
                raise ValueError(f"{self.title}: {self.path} has no settings.json beside it; choose another folder")
            with replacing(path) as part:
                part.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(there, dict):
                raise ValueError(f"it holds a {type(there).__name__} instead of settings")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.title}: {path} is damaged ({error}); remove the folder or choose another"
            ) from error
        different = [
            key for key in settings.keys() | there.keys() if key not in LOCAL and settings.get(key) != there.get(key)
        ]
        if different:
            raise ValueError(
                f"{self.title}: {self.folder} holds results of other settings ({', '.join(sorted(different))}); "
                "choose another folder with --out or remove this one"
            )

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self.notes.append(
                f"{self.path}: the last line is torn (an earlier run was cut off while writing) and was dropped"
            )
            os.truncate(self.path, whole)
        finished: dict[Any, dict[str, Any]] = {}
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                result = json.loads(line)
                task = self.task_of(result)
                again = task in finished
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{self.title}: line {number} of {self.path} is damaged; remove that line to run it again"
                ) from error
            if again:
                self.notes.append(f"{self.path}: line {number} is of a run that stands there already, and replaces it")
            finished[task] = result
        self.results = list(finished.values())


def weights(folder: Path, task: Any) -> Path:
    """Return where a study's folder holds the weights of a run."""
    return folder / "models" / f"{task.name}.pt"


def _write(file: int, data: bytes) -> None:
    """Write all of `data` and wait until it is on the disk."""
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)
