"""Run the study: every contestant, training and seed that is not finished, in one or several processes."""

from __future__ import annotations

import multiprocessing
import os
import platform
import queue
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch

import pliant
from pliant.data import FashionMNIST
from pliant.studies.geometry.contestants import CONTESTANTS
from pliant.studies.geometry.protocol import TRAININGS, Protocol, Task
from pliant.studies.geometry.single import run_one
from pliant.studies.geometry.store import Store


class Progress(Interface):
    """Who is told how far the study is."""

    def epoch(self, task: Task, epoch: int, epochs: int) -> None:
        """Take note that a run finished an epoch."""

    def finished(self, task: Task, result: dict[str, Any]) -> None:
        """Take note that a run is finished and on the disk."""


@dataclass(frozen=True)
class Study:
    """A study to run.

    Args:
        protocol: what all runs share.
        out: folder of the results.
        seeds: number of seeds, from 0.
        contestants: their names.
        jobs: processes; each has an equal share of torch's threads.
        device: of the networks.
        data: folder of the full IDX files; None takes the subset of the package.
    """

    protocol: Protocol
    out: Path
    seeds: int
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    jobs: int = 1
    device: str = "cpu"
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"geometry: there must be at least 1 seed, got {self.seeds}")
        if self.jobs < 1:
            raise ValueError(f"geometry: there must be at least 1 job, got {self.jobs}")
        unknown = [name for name in self.contestants if name not in CONTESTANTS]
        if unknown or not self.contestants:
            raise ValueError(
                f"geometry: there is no contestant {', '.join(unknown) or '(none given)'}; "
                f"there are {', '.join(CONTESTANTS)}"
            )
        try:
            torch.zeros(1, device=self.device).tolist()
        # AssertionError: a torch built without that device.
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"geometry: torch cannot compute on device {self.device!r} here") from error

    def tasks(self) -> list[Task]:
        """Return all runs, seed by seed, so that an interrupted study compares like with like."""
        order = [c for c in CONTESTANTS if c in self.contestants]
        return [Task(c, t, seed) for seed in range(self.seeds) for t in TRAININGS for c in order]

    def load(self) -> FashionMNIST:
        """Return the pictures that the protocol admits."""
        data = FashionMNIST.load(self.data)
        train = len(data.train) if self.protocol.train is None else self.protocol.train
        test = len(data.test) if self.protocol.test is None else self.protocol.test
        if train < self.protocol.recipe.batch:
            raise ValueError(
                f"geometry: {train} training pictures are less than one batch of {self.protocol.recipe.batch}"
            )
        return FashionMNIST(data.train.first(train), data.test.first(test), data.source)

    def settings(self, data: FashionMNIST) -> dict[str, Any]:
        """Return what settings.json holds."""
        return {
            **self.protocol.settings(),
            "device": torch.device(self.device).type,
            "data": {
                "name": "Fashion-MNIST",
                "source": data.source,
                "train": len(data.train),
                "test": len(data.test),
                "sha256": data.digest,
            },
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


def run(study: Study, store: Store, data: FashionMNIST, progress: Progress) -> None:
    """Run what is not finished yet and append every result to `store`.

    Raises:
        OSError: the disk is full or a file cannot be written; what is finished stays valid.
        RuntimeError: a process died.
        KeyboardInterrupt: Ctrl-C; what is finished stays valid.
    """
    todo = [task for task in study.tasks() if task not in store.finished]
    jobs = min(study.jobs, len(todo))
    # torch's own count, which OMP_NUM_THREADS bounds.
    threads = max(1, torch.get_num_threads() // study.jobs)
    if jobs == 1:
        with _threads(threads):
            for task in todo:
                path = store.model(task)
                result = run_one(task, study.protocol, data, study.device, path, _tell(task, progress))
                store.append(result)
                progress.finished(task, result)
    elif jobs > 1:
        _run_in_processes(study, store, todo, jobs, threads, progress)


def _run_in_processes(
    study: Study, store: Store, todo: list[Task], jobs: int, threads: int, progress: Progress
) -> None:
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
                        f"geometry: a process died (exit code {dead[0]}; out of memory?); fewer --jobs may help"
                    ) from None
                continue
            if kind == "epoch":
                progress.epoch(task, *content)
            elif kind == "error":
                raise content
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
    try:
        data = study.load()
        with _threads(threads):
            while (task := tasks.get()) is not None:
                path = study.out / "models" / f"{task.name}.pt"

                def tell(epoch: int, epochs: int, task: Task = task) -> None:
                    messages.put(("epoch", task, (epoch, epochs)))

                result = run_one(task, study.protocol, data, study.device, path, tell)
                messages.put(("result", task, result))
    except Exception as error:
        messages.put(("error", None, error))


def _tell(task: Task, progress: Progress) -> Any:
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
