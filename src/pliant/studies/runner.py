"""Run a study: every task that is not finished, in one or several processes."""

from __future__ import annotations

import multiprocessing
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from typing import Protocol as Interface

import torch

import pliant
from pliant.studies.store import Store, weights

Tell = Callable[[int, int], None]
T = TypeVar("T", bound="Task")


class Progress(Interface):
    """Receiver of a study's progress."""

    def epoch(self, task: Any, epoch: int, epochs: int) -> None:
        """A run has finished an epoch."""

    def finished(self, task: Any, result: dict[str, Any]) -> None:
        """A run is finished and its result is on the disk."""


@dataclass(frozen=True)
class Task:
    """One run. Every study has fields of its own: contestant, condition (what it is trained on), seed."""

    @property
    def name(self) -> str:
        """Return the name of its files."""
        return "-".join(map(str, astuple(self)))

    @classmethod
    def of(cls: type[T], result: dict[str, Any]) -> T:
        """Return the task whose result this is; KeyError or TypeError where it is none."""
        return cls(**{field.name: result[field.name] for field in fields(cls)})

    def described(self, label: str, profile: str) -> dict[str, Any]:
        """Return what the result of this run begins with: what identifies it."""
        contestant, *others = asdict(self).items()
        return dict([contestant, ("label", label), *others, ("profile", profile)])


@dataclass(frozen=True)
class Study(ABC):
    """A study to run; a subclass says what its conditions are and how one task is run.

    Args:
        protocol: what all runs share.
        out: folder of the results.
        seeds: number of seeds, from 0.
        contestants: their names.
        jobs: processes; each has an equal share of torch's threads.
        device: of the networks.
    """

    title: ClassVar[str]
    everyone: ClassVar[Sequence[str]]
    task: ClassVar[type[Task]]

    protocol: Any
    out: Path
    seeds: int
    contestants: tuple[str, ...]
    jobs: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"{self.title}: there must be at least 1 seed, got {self.seeds}")
        if self.jobs < 1:
            raise ValueError(f"{self.title}: there must be at least 1 job, got {self.jobs}")
        unknown = [name for name in self.contestants if name not in self.everyone]
        if unknown or not self.contestants:
            raise ValueError(
                f"{self.title}: there is no contestant {', '.join(unknown) or '(none given)'}; "
                f"there are {', '.join(self.everyone)}"
            )
        try:
            torch.zeros(1, device=self.device).tolist()
        # AssertionError: a torch built without that device.
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{self.title}: torch cannot compute on device {self.device!r} here") from error

    @property
    @abstractmethod
    def conditions(self) -> Sequence[str]:
        """Return what contestants are trained on."""

    def tasks(self) -> list[Any]:
        """Return all runs, seed by seed, so that an interrupted study has the same seeds of all contestants."""
        order = [c for c in self.everyone if c in self.contestants]
        every: list[tuple[Any, ...]] = [(c, of, s) for s in range(self.seeds) for of in self.conditions for c in order]
        return [self.task(*each) for each in every]

    @abstractmethod
    def load(self) -> Any:
        """Return the data of the protocol; every process loads its own."""

    @abstractmethod
    def settings(self, data: Any) -> dict[str, Any]:
        """Return what settings.json holds."""

    @abstractmethod
    def run_one(self, task: Any, data: Any, path: Path, tell: Tell) -> dict[str, Any]:
        """Return the result of one run, and write the weights of a network to `path`."""

    @classmethod
    def task_of(cls, result: dict[str, Any]) -> Task:
        """Return the task whose result this is; KeyError or TypeError where it is none."""
        return cls.task.of(result)

    def store(self, data: Any) -> Store:
        """Return the folder of the results, made when missing."""
        return Store(self.title, self.out, self.settings(data), self.task_of)

    def here(self) -> dict[str, Any]:
        """Return what settings.json holds about the software and the machine."""
        return {
            "device": torch.device(self.device).type,
            "versions": {"pliant": pliant.__version__, "torch": torch.__version__},
            "machine": {
                "processor": _processor(),
                "system": f"{platform.system()} {platform.machine()}",
                "python": platform.python_version(),
                "cores": os.cpu_count(),
                "jobs": self.jobs,
                "threads": max(1, torch.get_num_threads() // self.jobs),
            },
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }


def run(study: Study, store: Store, data: Any, progress: Progress) -> None:
    """Run all tasks that are not finished and append every result to `store`.

    Raises:
        OSError: the disk is full or a file cannot be written; finished runs stay valid.
        RuntimeError: a process died.
        KeyboardInterrupt: Ctrl-C; finished runs stay valid.
    """
    todo = [task for task in study.tasks() if task not in store.finished]
    jobs = min(study.jobs, len(todo))
    # torch's own count, which OMP_NUM_THREADS limits.
    threads = max(1, torch.get_num_threads() // study.jobs)
    if jobs == 1:
        with _threads(threads):
            for task in todo:
                result = study.run_one(task, data, store.model(task), _tell(task, progress))
                store.append(result)
                progress.finished(task, result)
    elif jobs > 1:
        _run_in_processes(study, store, todo, jobs, threads, progress)


def _run_in_processes(study: Study, store: Store, todo: list[Any], jobs: int, threads: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    tasks: Any = context.Queue()
    messages: Any = context.Queue()
    for task in [*todo, *[None] * jobs]:
        tasks.put(task)
    workers = [context.Process(target=_work, args=(study, threads, tasks, messages), daemon=True) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    left = len(todo)
    try:
        while left:
            try:
                kind, task, content = messages.get(timeout=1)
            except queue.Empty:
                dead = [w.exitcode for w in workers if w.exitcode]
                if dead:
                    raise RuntimeError(
                        f"{study.title}: a process died (exit code {dead[0]}; out of memory?); fewer --jobs may help"
                    ) from None
                continue
            if kind == "epoch":
                progress.epoch(task, *content)
            elif kind == "error":
                # As it arrives, an error has lost where it arose.
                error, arose = content
                raise error from RuntimeError(f"in a process of the study:\n{arose}")
            else:
                store.append(content)
                progress.finished(task, content)
                left -= 1
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
            worker.close()
        for channel in (tasks, messages):
            channel.cancel_join_thread()
            channel.close()


def _work(study: Study, threads: int, tasks: Any, messages: Any) -> None:
    """Run tasks until there are none; the body of a process."""
    # Ctrl-C reaches the whole group: the parent alone reacts, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        data = study.load()
        with _threads(threads):
            while (task := tasks.get()) is not None:

                def tell(epoch: int, epochs: int, task: Any = task) -> None:
                    messages.put(("epoch", task, (epoch, epochs)))

                messages.put(("result", task, study.run_one(task, data, weights(study.out, task), tell)))
    except Exception as error:
        messages.put(("error", None, (error, traceback.format_exc())))


def _end_with_the_parent() -> None:
    """End this process when its parent has died: nothing else ends the workers of a parent that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _tell(task: Any, progress: Progress) -> Tell:
    return lambda epoch, epochs: progress.epoch(task, epoch, epochs)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give torch, OpenCV and scikit-learn `count` threads each."""
    import cv2
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _processor() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
