"""One run of the study: train a contestant once, test it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant import _files
from pliant.models import build_detector, checkpoint, strip_training_only
from pliant.studies.detection import measures
from pliant.studies.detection.contestants import find
from pliant.studies.detection.hog import HogMachine
from pliant.studies.detection.pretraining import pretrained
from pliant.studies.detection.protocol import BINS, SIDE, Images, Kept, Protocol, Task, shown
from pliant.studies.runner import Tell
from pliant.train import fit_detector, multiply_adds, parameters, save
from pliant.train.build import augmentation
from pliant.train.distributed import Ranks
from pliant.train.evaluation import average_precision, coco_results, evaluate
from pliant.train.log import Record, finite

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "per_class")
PACED = 40  # images timed, at most
ROUNDS = 3  # of the search for hard negatives


def run_one(task: Task, protocol: Protocol, data: Images, device: str, path: Path, tell: Tell) -> dict[str, Any]:
    """Return the result of one run, and write the weights of a network to `path`.

    The same task gives the same result on the same machine with the same number of threads.

    Args:
        task: contestant, data, seed.
        protocol: what all runs share.
        data: images to train and test on.
        device: of the network.
        path: file of the weights.
        tell: called with (part, parts) while the run goes on.
    """
    contestant = find(task.contestant)
    run = _network if contestant.learned else _hog
    found: dict[str, Any] = finite(run(task, protocol, data, device, path, tell))
    return task.described(contestant.label, protocol.profile) | found


def load(task: Task, protocol: Protocol, classes: int, path: Path) -> nn.Module:
    """Return the network of a finished run from its weights, in evaluation mode; errors are those of reading it."""
    model = build_detector(protocol.recipe_of(task, 1).model, classes)
    strip_training_only(model)  # what mimicking needs is not among the weights
    model.load_state_dict(_files.load(path))
    return model.eval()


def _network(task: Task, protocol: Protocol, data: Images, device: str, path: Path, tell: Tell) -> dict[str, Any]:
    train, test = data.of(task)
    recipe = protocol.recipe_of(task, len(train), pretrained(data, task.seed, path.parent))
    ranks = Ranks(device=torch.device(device))

    def build(with_weights: bool) -> nn.Module:
        return build_detector(recipe.model, len(train.classes), seed=task.seed, pretrained=with_weights)

    before = evaluate(build(False).to(ranks.device), test, batch=recipe.batch, ranks=ranks)
    model = build(True)

    parts, seconds = protocol.epochs, 0.0

    def told(record: Record) -> None:
        nonlocal seconds
        if record["kind"] == "step":
            seconds += recipe.batch / record["images_per_second"]
            done, after = (step * parts // protocol.steps for step in (record["step"] - 1, record["step"]))
            if after > done:
                tell(after, parts)

    records = fit_detector(
        model, train, recipe, transform=augmentation(recipe.data), test=test, ranks=ranks, on_record=told
    )
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    model = strip_training_only(model).eval()
    save(model, path)
    return {
        "parameters": parameters(model),
        "multiply_adds": multiply_adds(model.to("cpu"), 3, SIDE, SIDE),
        "train_seconds": round(seconds, 2),
        "image_seconds": _pace(lambda image: model([shown(image).to(ranks.device)]), model.to(ranks.device), test),
        "epochs": protocol.epochs,
        "steps": protocol.steps,
        "untrained": {key: before[key] for key in SCORES[:3]},
        "scores": {key: evaluations[-1][key] for key in SCORES},
        "curve": [{key: e[key] for key in ("step", *SCORES[:3])} for e in evaluations],
        "losses": averaged([r for r in records if r["kind"] == "step"], BINS),
        **measures.watched(model.to("cpu"), test),
    }


def _hog(task: Task, protocol: Protocol, data: Images, device: str, path: Path, tell: Tell) -> dict[str, Any]:
    train, test = data.of(task)
    machine = HogMachine(len(train.classes), task.seed)
    epochs = protocol.epochs
    started = time.perf_counter()
    machine.fit(train, ROUNDS, lambda round, rounds: tell(round * epochs // (rounds + 1), epochs))
    trained = time.perf_counter()
    checkpoint.write(path, machine.state())
    found = []
    for image, target in test:
        found += coco_results(machine.detect(image), target["image_id"], test.category_ids)
    scores = average_precision(test.coco(), found, areas=test.area_ranges)
    tell(epochs, epochs)
    return {
        "parameters": machine.parameters,
        "multiply_adds": None,  # inside scikit-image: not counted
        "train_seconds": round(trained - started, 2),
        "image_seconds": _pace(machine.detect, None, test),
        "epochs": 1,
        "steps": None,
        "untrained": None,
        "scores": {key: scores[key] for key in SCORES},
        "curve": [],
        "losses": [],
        **dict.fromkeys(measures.NAMES),
    }


def averaged(steps: Sequence[Mapping[str, Any]], bins: int) -> list[dict[str, float]]:
    """Return the mean losses of equal parts of a run, each with its last step."""
    width = max(1, len(steps) // bins)
    names = [k for k, v in steps[0].items() if isinstance(v, float) and k not in ("lr", "images_per_second")]
    parts = [steps[start : start + width] for start in range(0, len(steps) - width + 1, width)]
    return [
        {"step": part[-1]["step"], **{name: statistics.fmean(record[name] for record in part) for name in names}}
        for part in parts
    ]


@torch.no_grad()
def _pace(detect: Callable[[Tensor], Any], model: nn.Module | None, test: Kept) -> float:
    """Return the median seconds per image, one at a time, on this process's threads."""
    images = [test[index][0] for index in range(min(PACED, len(test)))]
    detect(images[0])
    times = []
    for image in images:
        started = time.perf_counter()
        detect(image)
        if model is not None and next(model.parameters()).is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times), 5)
