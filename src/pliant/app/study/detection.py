"""Options and output of ``pliant study detection``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from pliant.studies.detection import CONTESTANTS, DATA, QUICK, Protocol, Study, Task
from pliant.studies.detection.report import write
from pliant.studies.detection.summary import summary

__all__ = ["CONTESTANTS", "HELP", "SEEDS", "add_arguments", "said", "study", "summary", "write"]

HELP = "small detectors as in the papers' tables, and a hand-made one, on composed scenes and tree crowns"
SEEDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this study alone."""
    parser.add_argument("--data", choices=DATA, help="only this data set (default: both, with --quick composed)")
    parser.add_argument("--scenes", type=int, metavar="N", help="train on N composed scenes, test on N/8")


def study(args: argparse.Namespace, **shared: Any) -> Study:
    """Return the study that the arguments ask for."""
    protocol = Protocol.of("quick" if args.quick else "full")
    if args.epochs is not None:
        protocol = replace(protocol, recipe=replace(protocol.recipe, epochs=args.epochs))
    if args.scenes is not None:
        if args.scenes < 8:
            raise ValueError(f"--scenes must be at least 8, got {args.scenes}")
        protocol = replace(protocol, train=args.scenes, test=args.scenes // 8)
    data = (args.data,) if args.data else DATA[:1] if args.quick else DATA
    contestants = shared.pop("contestants") or (QUICK if args.quick else tuple(CONTESTANTS))
    return Study(protocol, contestants=contestants, data=data, **shared)


def said(task: Task, result: dict[str, Any]) -> str:
    """Return the outcome of a run in one line."""
    scores = {name: 100 * (result["scores"][name] or 0.0) for name in ("AP", "AP50")}
    return (
        f"{result['label']}, {task.data}, seed {task.seed}: AP {scores['AP']:.1f} %, AP50 {scores['AP50']:.1f} %, "
        f"trained in {result['train_seconds']:.0f} s"
    )
