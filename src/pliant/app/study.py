"""``pliant study geometry``: run the experiment and write its report."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pliant.studies import report
from pliant.studies.geometry import CONTESTANTS, Protocol, Study, Task
from pliant.studies.geometry import run as run_study
from pliant.studies.geometry.store import Store
from pliant.studies.geometry.summary import measured, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``pliant study`` takes."""
    parser.add_argument("study", choices=["geometry"], help="geometry: objects under geometric transformations")
    parser.add_argument("--quick", action="store_true", help="few epochs, one seed: minutes instead of most of an hour")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds (default: 5, with --quick 1)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--device", default="cpu", help="where the networks run, such as cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("runs/geometry"), metavar="DIR", help="default: runs/geometry")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the four IDX files of all of Fashion-MNIST")
    parser.add_argument("--contestants", metavar="A,B", help=f"only these of {', '.join(CONTESTANTS)}")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs, instead of the profile's")
    parser.add_argument("--pictures", type=int, metavar="N", help="train on N pictures at most, test on N/4")


def run(args: argparse.Namespace) -> int:
    """Run the study, print its summary, write its report; return the exit status."""
    study = _study(args)
    data = study.load()
    store = Store(study.out, study.settings(data))
    for note in store.notes:
        print(note)
    tasks = study.tasks()
    done = len(store.finished & set(tasks))
    profile = "the quick study: few epochs, one seed" if args.quick else "the full study"
    epochs = study.protocol.recipe.epochs
    print(
        f"{profile[0].upper()}{profile[1:]}. {len(tasks)} runs of {epochs} epoch{'s' * (epochs > 1)}, {done} of them "
        f"finished before. Results go to {study.out}/.",
        flush=True,
    )
    try:
        with progress(tasks, store) as bar:
            run_study(study, store, data, bar)
    except KeyboardInterrupt:
        print(f"\nInterrupted: {_kept(store)}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"\nThe disk is full: {_kept(store)}", file=sys.stderr)
        return 1
    chosen = set(tasks)
    print("\n" + summary([r for r in store.results if Task(r["contestant"], r["training"], r["seed"]) in chosen]))
    print(f"Report, with curves and pictures: {report.write(study.out)}")
    return 0


def _study(args: argparse.Namespace) -> Study:
    protocol = Protocol.of("quick" if args.quick else "full")
    if args.epochs is not None:
        if args.epochs < 1:
            raise ValueError(f"--epochs must be at least 1, got {args.epochs}")
        protocol = replace(protocol, recipe=replace(protocol.recipe, epochs=args.epochs))
    if args.pictures is not None:
        if args.pictures < 4:
            raise ValueError(f"--pictures must be at least 4, got {args.pictures}")
        protocol = replace(protocol, train=args.pictures, test=args.pictures // 4)
    return Study(
        protocol,
        args.out,
        seeds=args.seeds if args.seeds is not None else 1 if args.quick else 5,
        contestants=tuple(args.contestants.split(",")) if args.contestants else tuple(CONTESTANTS),
        jobs=args.jobs if args.jobs is not None else os.cpu_count() or 1,
        device=args.device,
        data=args.data,
    )


def _kept(store: Store) -> str:
    return f"{len(store.results)} finished runs are kept in {store.path}; the same command goes on from there."


class Plain:
    """Progress in plain lines: one a finished run."""

    def __init__(self, tasks: list[Task], store: Store) -> None:
        self.total = len(tasks)
        self.before = self.done = len(store.finished & set(tasks))
        self.started = time.monotonic()

    def __enter__(self) -> Plain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def epoch(self, task: Task, epoch: int, epochs: int) -> None:
        """Say nothing."""

    def finished(self, task: Task, result: dict[str, Any]) -> None:
        """Print one line."""
        self.done += 1
        left = (time.monotonic() - self.started) / (self.done - self.before) * (self.total - self.done)
        print(f"[{self.done}/{self.total}] {said(task, result)}; about {duration(left)} left", flush=True)


class Bar:
    """Progress as a bar with the time left, on a terminal."""

    def __init__(self, tasks: list[Task], store: Store) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"),
            TimeRemainingColumn(compact=True), speed_estimate_period=600,
        )  # fmt: skip
        finished = len(store.finished & set(tasks))
        # Time is counted in tenths of a run, of which testing takes the last.
        self.all = self.bar.add_task("all runs", total=10 * len(tasks), completed=10 * finished)
        self.rows: dict[Task, Any] = {}

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def epoch(self, task: Task, epoch: int, epochs: int) -> None:
        """Move the bars."""
        if task not in self.rows:
            self.rows[task] = self.bar.add_task(task.name, total=10)
        share = 9 * epoch / epochs
        before = self.bar.tasks[self.bar.task_ids.index(self.rows[task])].completed
        self.bar.update(self.rows[task], completed=share)
        self.bar.advance(self.all, share - before)

    def finished(self, task: Task, result: dict[str, Any]) -> None:
        """Replace the run's bar by a line."""
        row = self.rows.pop(task, None)
        before = 0.0
        if row is not None:
            before = self.bar.tasks[self.bar.task_ids.index(row)].completed
            self.bar.remove_task(row)
        self.bar.advance(self.all, 10 - before)
        self.bar.console.print(said(task, result), highlight=False)


def progress(tasks: list[Task], store: Store) -> Plain | Bar:
    """Return a bar on a terminal, plain lines elsewhere."""
    return Bar(tasks, store) if sys.stdout.isatty() else Plain(tasks, store)


def said(task: Task, result: dict[str, Any]) -> str:
    """Return the outcome of a run in one line."""
    scores = measured(result)
    return (
        f"{result['label']}, {task.training}, seed {task.seed}: clean {100 * scores['clean']:.1f} %, "
        f"transformed {100 * scores['transformed']:.1f} %, trained in {result['train_seconds']:.0f} s"
    )


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(59.4), duration(200), duration(8000)
    ('59 s', '3 min', '2 h 13 min')
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
