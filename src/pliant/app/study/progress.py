"""Progress of a study: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pliant.app.progress import duration
from pliant.studies.store import Store

Said = Callable[[Any, dict[str, Any]], str]  # the outcome of a run in one line


class StudyLines:
    """Progress in plain lines: one per finished run."""

    def __init__(self, tasks: list[Any], store: Store, said: Said) -> None:
        self.said = said
        self.total = len(tasks)
        self.before = self.done = len(store.finished & set(tasks))
        self.started = time.monotonic()

    def __enter__(self) -> StudyLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def epoch(self, task: Any, epoch: int, epochs: int) -> None:
        """Say nothing."""

    def finished(self, task: Any, result: dict[str, Any]) -> None:
        """Print one line."""
        self.done += 1
        left = (time.monotonic() - self.started) / (self.done - self.before) * (self.total - self.done)
        print(f"[{self.done}/{self.total}] {self.said(task, result)}; about {duration(left)} left", flush=True)


class StudyBars:
    """Progress as a bar with the time left, on a terminal."""

    def __init__(self, tasks: list[Any], store: Store, said: Said) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.said = said
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"),
            TimeRemainingColumn(compact=True), speed_estimate_period=600,
        )  # fmt: skip
        finished = len(store.finished & set(tasks))
        # Time is counted in tenths of a run, of which testing takes the last.
        self.all = self.bar.add_task("all runs", total=10 * len(tasks), completed=10 * finished)
        self.rows: dict[Any, Any] = {}

    def __enter__(self) -> StudyBars:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def epoch(self, task: Any, epoch: int, epochs: int) -> None:
        """Move the bars."""
        if task not in self.rows:
            self.rows[task] = self.bar.add_task(task.name, total=10)
        share = 9 * epoch / epochs
        before = self.bar.tasks[self.bar.task_ids.index(self.rows[task])].completed
        self.bar.update(self.rows[task], completed=share)
        self.bar.advance(self.all, share - before)

    def finished(self, task: Any, result: dict[str, Any]) -> None:
        """Replace the run's bar by a line."""
        row = self.rows.pop(task, None)
        before = 0.0
        if row is not None:
            before = self.bar.tasks[self.bar.task_ids.index(row)].completed
            self.bar.remove_task(row)
        self.bar.advance(self.all, 10 - before)
        self.bar.console.print(self.said(task, result), highlight=False)


def progress(tasks: list[Any], store: Store, said: Said) -> StudyLines | StudyBars:
    """Return a bar on a terminal, plain lines elsewhere."""
    return (StudyBars if sys.stdout.isatty() else StudyLines)(tasks, store, said)
