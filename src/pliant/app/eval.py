"""``pliant eval``: average precision of a trained detector."""

from __future__ import annotations

import json
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pliant._files import apart, replacing
from pliant.app import CHECKPOINT, COMMANDS, DEVICE, arguments
from pliant.app.data import told
from pliant.app.progress import percent
from pliant.data import Detection, matched
from pliant.models import Predictor
from pliant.models.predictor import recorded_state
from pliant.train import DataRecipe, DetectorRecipe, evaluate, log
from pliant.train.build import build_data, resizing
from pliant.train.distributed import start


@dataclass(frozen=True)
class _Settings:
    """The part of the arguments that is a recipe."""

    data: DataRecipe


COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def main(words: Sequence[str]) -> int:
    """Evaluate as the arguments say, print a table, write JSON; return the exit status."""
    parser = arguments.parser(
        "pliant eval MODEL [OPTION …]",
        f"Measure the average precision of a detector on the data of its run. Example: {COMMANDS['eval'].example}",
    )
    parser.add_argument("checkpoint", metavar="MODEL", type=str, help=CHECKPOINT)
    parser.add_class_arguments(DataRecipe, "data", help="other data than that of the run")
    parser.add_argument(
        "--images", metavar="DIR", default=SUPPRESS, help="short for --data.source folder --data.test-images DIR"
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        default=SUPPRESS,
        help="short for --data.source folder --data.test-annotations FILE",
    )
    parser.add_argument("--split", choices=["test", "train"], default="test", help="which part of the data")
    parser.add_argument("--batch", type=int, help="images per forward pass (default: as in training)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--max_detections", type=int, help="most per image and class (default: as in training)")
    parser.add_argument("--device", type=str, default="auto", help=DEVICE)
    parser.add_argument("--json", type=str, help="file for the result (default: evaluation.json beside the checkpoint)")

    given, words = list(words), arguments.spelled_out(words, "data.test_images", "data.test_annotations")
    args = arguments.parse(parser, words, _Settings)
    if args.split == "train" and words != given:
        raise ValueError(
            "--images and --annotations replace the test data, --split train takes the training data of the run"
        )
    path = Path(args.checkpoint)
    # Beside the checkpoint, or here if it comes with the package.
    out = Path(args.json) if args.json else path.with_name("evaluation.json")
    state = recorded_state(args.checkpoint)
    recipe = DetectorRecipe.of(state["recipe"])
    # Settings that are not given are those of the run.
    parser.set_defaults({f"data.{name}": value for name, value in asdict(recipe.data).items()})
    args = parser.instantiate(arguments.parse(parser, words, _Settings))
    read = (args.data.annotations, args.data.test_annotations, args.checkpoint)
    apart([out], (Path(name) for name in read if name))
    data = told(partial(_data, args.data, args.split, path, state))
    with start(args.device) as ranks:
        scores = evaluate(
            Predictor.of(state, ranks.device).model, data, batch=args.batch or recipe.batch, workers=args.workers,
            resize=resizing(args.data), max_detections=args.max_detections or recipe.max_detections, ranks=ranks,
        )  # fmt: skip
    if ranks.rank:
        return 0
    for reason in scores.get("broken", ()):
        print(f"left out: {reason}", file=sys.stderr)
    print(table(scores))
    about = {"checkpoint": str(path), "step": state["step"], "split": args.split, "pictures": len(data)}
    result = log.finite({**about, "data": asdict(args.data), **scores})
    with replacing(out) as part:
        part.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nIn percent. Written to {out}.")
    return 0


def _data(recipe: DataRecipe, split: Literal["train", "test"], path: Path, state: dict[str, Any]) -> Detection:
    """Return the data to evaluate on, with the categories of the checkpoint."""
    data = build_data(recipe, split)
    if data is None:
        raise ValueError("the run has no test images; name some with --images and --annotations, or use --split train")
    return matched(data, state["classes"], state["category_ids"], str(path))


def table(scores: dict[str, Any]) -> str:
    """Return average precisions as two tables of plain text, in percent.

    >>> scores = {"AP": 0.5, "AP50": 0.75, "AP75": 0.5, "APs": float("nan"), "APm": 0.4, "APl": 0.6}
    >>> print(table({**scores, "per_class": {"dog": 0.4, "cat": 0.6}}))
        AP    AP50    AP75     APs     APm     APl
      50.0    75.0    50.0       –    40.0    60.0
    <BLANKLINE>
    dog    40.0
    cat    60.0
    """
    head = "".join(f"{name:>8}" for name in COLUMNS)[2:]
    line = "".join(f"{percent(scores[name]):>8}" for name in COLUMNS)[2:]
    width = max(map(len, scores["per_class"]), default=0)
    classes = [f"{name:<{width}}{percent(ap):>8}" for name, ap in scores["per_class"].items()]
    return "\n".join([head, line, "", *classes])
