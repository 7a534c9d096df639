"""One run of the study: train a contestant once, test it everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pliant.data import FashionMNIST, Ranges, Split
from pliant.studies.geometry import measures
from pliant.studies.geometry.contestants import build, find
from pliant.studies.geometry.protocol import Protocol, Task, epoch, exam, examinations
from pliant.studies.geometry.sift import SiftWords
from pliant.studies.runner import Tell
from pliant.train import accuracy, fit, multiply_adds, parameters, save

SIFT_DRAWS = 2  # times that the training images are drawn for SIFT


def run_one(task: Task, protocol: Protocol, data: FashionMNIST, device: str, path: Path, tell: Tell) -> dict[str, Any]:
    """Return the result of one run, and write the weights of a network to `path`.

    The same task gives the same result on the same machine with the same number of threads.

    Args:
        task: contestant, training, seed.
        protocol: what all runs share.
        data: images to train and test on.
        device: of the network.
        path: file of the weights.
        tell: called with (epoch, epochs) after every epoch.
    """
    contestant = find(task.contestant)
    run = _network if contestant.learned else _sift
    return task.described(contestant.label, protocol.profile) | run(task, protocol, data, device, path, tell)


def _network(task: Task, protocol: Protocol, data: FashionMNIST, device: str, path: Path, tell: Tell) -> dict[str, Any]:
    recipe = protocol.recipe
    torch.manual_seed(task.seed)
    net = build(task.contestant)
    cost = multiply_adds(net, 1, 1, 64, 64)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    random = torch.Generator().manual_seed(task.seed)

    def moved(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            yield images.to(device, memory_format=torch.channels_last), labels.to(device)

    started = time.perf_counter()
    fit(
        net,
        lambda _: moved(epoch(data.train, task.training, recipe.batch, random)),
        len(data.train) // recipe.batch,
        recipe,
        lambda number, _: tell(number, recipe.epochs),
    )
    trained = time.perf_counter()
    scores = _examined(lambda ranges: accuracy(net, moved(exam(data.test, ranges))))
    tested = time.perf_counter()
    save(net, path)
    watched = _watched(net, data.test) if find(task.contestant).deformed else {}
    return {
        "parameters": parameters(net),
        "multiply_adds": cost,
        "train_seconds": round(trained - started, 2),
        "test_seconds": round(tested - trained, 2),
        "epochs": recipe.epochs,
        "accuracy": scores,
        "effective_dilation": None,
        "spearman": None,
        "offsets": None,
        **watched,
    }


def _sift(task: Task, protocol: Protocol, data: FashionMNIST, device: str, path: Path, tell: Tell) -> dict[str, Any]:
    machine = SiftWords(task.seed)
    random = torch.Generator().manual_seed(task.seed)
    epochs = protocol.recipe.epochs
    started = time.perf_counter()
    described: list[np.ndarray] = []
    labels = []
    for _ in range(SIFT_DRAWS):
        for images, classes in epoch(data.train, task.training, protocol.recipe.batch, random):
            described += machine.describe(images)
            labels.append(classes)
    machine.fit(described, torch.cat(labels).numpy())
    tell(epochs // 2, epochs)
    trained = time.perf_counter()

    def right(ranges: Ranges) -> float:
        hits = [
            machine.predict(machine.describe(images)) == classes.numpy() for images, classes in exam(data.test, ranges)
        ]
        return float(np.concatenate(hits).mean())

    scores = _examined(right)
    tell(epochs, epochs)
    return {
        "parameters": machine.parameters,
        "multiply_adds": None,  # inside OpenCV: not counted
        "train_seconds": round(trained - started, 2),
        "test_seconds": round(time.perf_counter() - trained, 2),
        "epochs": SIFT_DRAWS,
        "accuracy": scores,
        "effective_dilation": None,
        "spearman": None,
        "offsets": None,
    }


def _examined(score: Callable[[Ranges], float]) -> dict[str, dict[str, float]]:
    """Return kind → strength → accuracy over all tests."""
    scores: dict[str, dict[str, float]] = {}
    for kind, strength, ranges in examinations():
        scores.setdefault(kind, {})[strength] = score(ranges)
    return scores


def _watched(net: Any, test: Split) -> dict[str, Any]:
    """Return what the deformable layers do on the clean test and on all tests of scale."""
    net = net.to("cpu")
    scales = [ranges for kind, _, ranges in examinations() if kind in ("clean", "scale")]

    def images(ranges: Ranges) -> Iterator[Tensor]:
        return (canvas for canvas, _ in exam(test, ranges))

    rows, spearman = measures.adaptation(net, map(images, scales))
    return {"effective_dilation": rows, "spearman": spearman, "offsets": measures.offsets(net, images(scales[0]))}
