"""Options and output of ``pliant study geometry``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from pliant.studies.geometry import CONTESTANTS, Protocol, Study, Task
from pliant.studies.geometry.report import write
from pliant.studies.geometry.summary import measured, summary

__all__ = ["CONTESTANTS", "HELP", "SEEDS", "add_arguments", "said", "study", "summary", "write"]

HELP = "objects under geometric transformations: augmentation, invariant features, deformable layers"
SEEDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this study alone."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the four IDX files of the full Fashion-MNIST (default: the bundled subset)",
    )
    parser.add_argument("--pictures", type=int, metavar="N", help="train on at most N images, test on N/4")


def study(args: argparse.Namespace, **shared: Any) -> Study:
    """Return the study that the arguments ask for."""
    protocol = Protocol.of("quick" if args.quick else "full")
    if args.epochs is not None:
        protocol = replace(protocol, recipe=replace(protocol.recipe, epochs=args.epochs))
    if args.pictures is not None:
        if args.pictures < 4:
            raise ValueError(f"--pictures must be at least 4, got {args.pictures}")
        protocol = replace(protocol, train=args.pictures, test=args.pictures // 4)
    return Study(protocol, contestants=shared.pop("contestants") or tuple(CONTESTANTS), data=args.data, **shared)


def said(task: Task, result: dict[str, Any]) -> str:
    """Return the outcome of a run in one line."""
    scores = measured(result)
    return (
        f"{result['label']}, {task.training}, seed {task.seed}: clean {100 * scores['clean']:.1f} %, "
        f"transformed {100 * scores['transformed']:.1f} %, trained in {result['train_seconds']:.0f} s"
    )
